package controlplane

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/registryserver"
)

// planned is what shoal plan --json says of one object.
type planned struct {
	Result string
	Source struct {
		Packed       bool
		Listed       bool
		Revision     string
		Files        int
		ReadFiles    int   `json:"read_files"`
		ReadBytes    int64 `json:"read_bytes"`
		Layers       int
		ReusedLayers int   `json:"reused_layers"`
		ImageBytes   int64 `json:"image_bytes"`
	}
	Registries []struct {
		Reference, Region, By, Error string
		SendBytes                    int64 `json:"send_bytes"`
	}
	Clusters struct {
		Wanted int
		Nodes  []struct {
			Name, Message string
			Fits          bool
		}
	}
	InTheWay []string `json:"in_the_way"`
	Notes    []string
}

// planner runs shoal plan as a user, in the surroundings.
type planner struct {
	*surroundings
	commands *commands
}

func newPlanner(s *surroundings) *planner {
	return &planner{s, &commands{server: s.server, binary: s.binary}}
}

// run returns what the program writes, with the flags, to both.
func (p *planner) run(t *testing.T, md *v1alpha1.ModelDistribution, flags ...string) (stdout, stderr string, code int) {
	t.Helper()
	raw, err := json.Marshal(md)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		t.Fatal(err)
	}
	delete(object["metadata"].(map[string]any), "creationTimestamp")
	if raw, err = json.Marshal(object); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"plan", "-f", "-"}, p.reach...)
	stdout, stderr, code = p.commands.run(t, string(raw), append(args, flags...)...)
	for _, secret := range []string{accessPass, pushPass} {
		if strings.Contains(stdout+stderr, secret) {
			t.Error("it tells a secret")
		}
	}
	return stdout, stderr, code
}

func (p *planner) plan(t *testing.T, wantCode int, md *v1alpha1.ModelDistribution, flags ...string) planned {
	t.Helper()
	out, stderr, code := p.run(t, md, append(flags, "--json")...)
	var all struct{ Plans []planned }
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all.Plans) != 1 {
		t.Fatalf("%v, exit code %d\n%s%s", err, code, out, stderr)
	}
	if code != wantCode {
		t.Errorf("exit code %d, want %d\n%s%s", code, wantCode, out, stderr)
	}
	return all.Plans[0]
}

// sums are what all servers have taken in and given out of the model.
func (s *surroundings) sums(folders map[string]map[string][]byte) string {
	var read int64
	for folder, files := range folders {
		read += s.read(folder, files)
	}
	return fmt.Sprint(read, s.members[hangzhou].Received(), s.members[beijing].Received())
}

// node makes a node that has so much disk and memory.
func (s *server) node(t *testing.T, name, group, disk, memory string) {
	t.Helper()
	s.apply(t, map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name, "labels": map[string]string{"nodegroup": group}}})
	has := fmt.Sprintf(`{"ephemeral-storage":%q,"memory":%q}`, disk, memory)
	s.kubectl(t, "patch", "node", name, "--subresource=status", "--type=merge", "-p", `{"status":{"capacity":`+has+`,"allocatable":`+has+`}}`)
}

// TestPlan: what is said before a version is applied is what the servers count after it.
func TestPlan(t *testing.T) {
	s := newSurroundings(t)
	p := newPlanner(s)
	const shard, folder2 = 20 << 20, "qwen3-8b/v2"
	files := modelFiles(1, shard)
	second := maps.Clone(files)
	second["model-2.safetensors"] = modelFiles(2, shard)["model-2.safetensors"]
	s.put(folder, files)
	s.put(folder2, second)
	folders := map[string]map[string][]byte{folder: files, folder2: second}
	var size int64
	for _, content := range files {
		size += int64(len(content))
	}
	s.server.node(t, "large", "dev", "1Gi", "512Mi")
	s.server.node(t, "small", "dev", "50Mi", "64Mi")
	s.server.node(t, "other", "prod", "1Mi", "1Mi")

	t.Run("First", func(t *testing.T) {
		before := s.sums(folders)
		got := p.plan(t, 1, theSample(t, "one")) // because of the small node
		if got.Result != "created" || got.Source.ReadBytes != size || got.Source.ReadFiles != len(files) || got.Source.ReusedLayers != 0 {
			t.Errorf("%+v", got)
		}
		for i, want := range []struct{ by, region string }{{"push", "cn-hangzhou"}, {"copy", "cn-beijing"}} {
			if r := got.Registries[i]; r.By != want.by || r.Region != want.region || r.SendBytes != got.Source.ImageBytes || r.Error != "" {
				t.Errorf("%+v", r)
			}
		}
		c := got.Clusters
		if c.Wanted != 2 || len(c.Nodes) != 2 || !c.Nodes[0].Fits || c.Nodes[1].Fits || !strings.Contains(c.Nodes[1].Message, "ephemeral storage") || !strings.Contains(c.Nodes[1].Message, "memory") {
			t.Errorf("%+v", c)
		}
		if len(got.InTheWay) != 1 || !strings.Contains(got.InTheWay[0], "only 1 of the 2 nodes that are to get it can hold it") {
			t.Errorf("%q", got.InTheWay)
		}
		if after := s.sums(folders); after != before {
			t.Errorf("the servers counted %s, and %s before", after, before)
		}
		if left := s.server.kubectl(t, "get", "md", "-o", "name"); left != "" {
			t.Errorf("it made %s", left)
		}
		page, _, _ := p.run(t, theSample(t, "one"))
		t.Logf("\n%s", page)
	})

	s.server.kubectl(t, "delete", "node", "small")
	s.start()
	s.server.create(t, theSample(t, "one"))
	first := s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))

	t.Run("Packed", func(t *testing.T) {
		got := p.plan(t, 0, theSample(t, "one"))
		if !got.Source.Packed || got.Source.ReadBytes != 0 || got.Registries[0].SendBytes+got.Registries[1].SendBytes != 0 {
			t.Errorf("%+v", got)
		}
	})

	version2 := theSample(t, "two", func(md *v1alpha1.ModelDistribution) {
		md.Spec.ModelVersion, md.Spec.ModelSource.OSS.Path = "v2", "/"+folder2
	})
	t.Run("Second", func(t *testing.T) {
		got := p.plan(t, 0, version2)
		if got.Source.ReadBytes != shard || got.Source.ReadFiles != 1 || got.Source.ReusedLayers != got.Source.Layers-1 {
			t.Errorf("%+v", got.Source)
		}
		for _, r := range got.Registries {
			if r.SendBytes < shard || r.SendBytes > shard+64<<10 {
				t.Errorf("%+v", r)
			}
		}
		page, _, code := p.run(t, version2)
		t.Logf("\n%s", page)
		if code != 0 || !strings.Contains(page, "20MiB of 80MiB, 1 of 6 files") {
			t.Errorf("exit code %d", code)
		}
		received := map[string]int64{hangzhou: s.members[hangzhou].Received(), beijing: s.members[beijing].Received()}
		s.server.create(t, version2)
		md := s.server.until(t, "two", "Synced", isTrue(v1alpha1.ConditionSynced))
		if md.Status.Revision != got.Source.Revision {
			t.Errorf("revision %s, planned was %s", md.Status.Revision, got.Source.Revision)
		}
		if read := s.read(folder2, second); read != got.Source.ReadBytes {
			t.Errorf("%d bytes were read, planned were %d", read, got.Source.ReadBytes)
		}
		for i, host := range []string{hangzhou, beijing} {
			sent, said := s.members[host].Received()-received[host], got.Registries[i].SendBytes
			if sent < said || sent > said+1<<20 {
				t.Errorf("%s received %d bytes, planned were %d", host, sent, said)
			}
			t.Logf("%s received %d bytes, planned were %d", host, sent, said)
		}
	})

	t.Run("Image", func(t *testing.T) { // of which another repository of the first registry has everything
		got := p.plan(t, 0, theSample(t, "taken", func(md *v1alpha1.ModelDistribution) {
			md.Spec.ModelName, md.Spec.ModelSource = "taken", v1alpha1.ModelSource{Registry: &v1alpha1.RegistrySource{
				Reference: hangzhou + "/qwen/qwen3-8b:v1", Secret: "push-secret",
			}}
		}))
		if got.Source.ReadBytes != 0 || got.Source.Revision != first.Status.Digest || got.Registries[1].SendBytes != got.Source.ImageBytes {
			t.Errorf("%+v", got)
		}
	})
}

// TestPlanFaults: each is said in one sentence, and the rest is planned all the same.
func TestPlanFaults(t *testing.T) {
	s := newSurroundings(t)
	p := newPlanner(s)
	s.put(folder, modelFiles(1, 1<<20))
	s.server.secret(t, "wrong", "Opaque", map[string]string{"akId": accessKey, "akSecret": "guess"})
	secret := func(name string) func(*v1alpha1.ModelDistribution) {
		return func(md *v1alpha1.ModelDistribution) {
			md.Spec.ModelSource.OSS.Secret = v1alpha1.SecretName(name)
		}
	}
	for name, tc := range map[string]struct {
		change func(*v1alpha1.ModelDistribution)
		flags  []string
		bad    func(*http.Request) registryserver.Fault
		want   []string
		listed bool
	}{
		"WrongKey": {change: secret("wrong"), want: []string{"the source cannot be listed", bucket, "access key secret does not fit", "SignatureDoesNotMatch"}},
		"NoSecret": {change: secret("gone"), want: []string{"there is no Secret gone in namespace default"}},
		"NoRight": {
			flags: []string{"--kubeconfig", s.server.as(t, "planner", "--verb=get,list,patch,create", "--resource=modeldistributions.ack.alibabacloud.com")},
			want:  []string{"the Secret access in namespace default may not be read: the right to get secrets there is needed", "the Secret push-secret", `User "planner" cannot list resource "nodes"`},
		},
		"Hub": {
			change: func(md *v1alpha1.ModelDistribution) {
				md.Spec.ModelSource = v1alpha1.ModelSource{HuggingFace: &v1alpha1.HuggingFaceSource{Model: "Qwen/Qwen3-8B"}}
			},
			want: []string{"the source cannot be listed", "reads models from OSS and from registries"},
		},
		"Down": {bad: down, want: []string{"registry " + beijing + "/test/qwen3-8b:v1 cannot be asked", "the registry fails"}, listed: true},
		"Paused": {
			change: func(md *v1alpha1.ModelDistribution) { md.Spec.Paused = true },
			want:   []string{"spec.paused is true"}, listed: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.fail(beijing, tc.bad)
			defer s.fail(beijing, nil)
			md := theSample(t, "one")
			if tc.change != nil {
				tc.change(md)
			}
			got := p.plan(t, 1, md, tc.flags...)
			says := strings.Join(append(got.InTheWay, got.Notes...), "\n")
			for _, want := range tc.want {
				if !strings.Contains(says, want) {
					t.Errorf("%s\nwant: %s", says, want)
				}
			}
			if strings.Contains(says, "guess") {
				t.Error("it tells a secret")
			}
			if got.Source.Listed != tc.listed || len(got.Registries) != 2 {
				t.Errorf("%+v", got)
			}
			t.Logf("%s", says)
		})
	}
	t.Run("Viewer", func(t *testing.T) { // who may read in one namespace, and change nothing
		s.server.kubectl(t, "create", "role", "viewer", "-n", "default", "--verb=get,list", "--resource=modeldistributions.ack.alibabacloud.com,secrets")
		s.server.kubectl(t, "create", "rolebinding", "viewer", "-n", "default", "--role=viewer", "--user=viewer")
		got := p.plan(t, 0, theSample(t, "one"), "--kubeconfig", s.server.impersonate(t, "viewer"))
		notes := strings.Join(got.Notes, "\n")
		for _, want := range []string{"the API server has not checked the file", "earlier versions that are not seen from here", `cannot list resource "nodes"`} {
			if !strings.Contains(notes, want) {
				t.Errorf("%s\nwant: %s", notes, want)
			}
		}
		if !got.Source.Listed || got.Source.ReadBytes == 0 || got.Result != "" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("Refused", func(t *testing.T) {
		_, stderr, code := p.run(t, theSample(t, "one", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelName = "Qwen3" }))
		if code != 1 || !strings.Contains(stderr, "spec.modelName: \"Qwen3\": modelName becomes part") {
			t.Errorf("exit code %d\n%s", code, stderr)
		}
	})
}

// as is the kubeconfig of a user who has one cluster role, everywhere.
func (s *server) as(t *testing.T, user string, role ...string) string {
	t.Helper()
	s.kubectl(t, append([]string{"create", "clusterrole", user}, role...)...)
	s.kubectl(t, "create", "clusterrolebinding", user, "--clusterrole="+user, "--user="+user)
	return s.impersonate(t, user)
}

func (s *server) impersonate(t *testing.T, user string) string {
	t.Helper()
	k, err := clientcmd.LoadFromFile(s.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range k.AuthInfos {
		info.Impersonate = user
	}
	file := filepath.Join(t.TempDir(), user+".kubeconfig")
	if err := clientcmd.WriteToFile(*k, file); err != nil {
		t.Fatal(err)
	}
	return file
}
