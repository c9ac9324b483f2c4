package controlplane

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/faults"
	"github.com/shoal-project/shoal/internal/osstest"
)

// theSample is examples/modeldistribution.yaml, with the changes.
func theSample(t *testing.T, name string, change ...func(*v1alpha1.ModelDistribution)) *v1alpha1.ModelDistribution {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(examples, "modeldistribution.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var md v1alpha1.ModelDistribution
	if err := yaml.UnmarshalStrict(raw, &md); err != nil {
		t.Fatal(err)
	}
	md.Name = name
	for _, c := range change {
		c(&md)
	}
	return &md
}

// create applies a ModelDistribution as a user would: without a status.
func (s *server) create(t *testing.T, md *v1alpha1.ModelDistribution) {
	t.Helper()
	raw, err := json.Marshal(md)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		t.Fatal(err)
	}
	delete(object, "status")
	delete(object["metadata"].(map[string]any), "creationTimestamp")
	s.apply(t, object)
}

// TestSample: the sample as it stands ends as images in both registries, bit for bit.
func TestSample(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 20<<20)
	s.put(folder, files)
	s.put("qwen3-8b/v10", map[string][]byte{"other": []byte("of another version")})
	s.start()
	s.server.kubectl(t, "apply", "-f", filepath.Join(examples, "modeldistribution.yaml"))
	md := s.server.until(t, sampleName, "Synced", isTrue(v1alpha1.ConditionSynced))
	s.holds(hangzhou, "qwen/qwen3-8b", "v1", files)
	s.holds(beijing, "test/qwen3-8b", "v1", files)
	var size int64
	for _, content := range files {
		size += int64(len(content))
	}
	if read := s.read(folder, files); read != size {
		t.Errorf("%d bytes were read from the bucket, of %d", read, size)
	}
	if md.Status.Bytes < size || md.Status.Digest == "" || md.Status.Revision == "" || md.Status.ObservedGeneration != md.Generation {
		t.Errorf("status %+v", md.Status)
	}
	if p := md.Status.Packing; p == nil || p.DoneBytes < size || p.ReusedBytes != 0 {
		t.Errorf("packing %+v", p)
	}
	for _, r := range md.Status.Registries {
		if r.State != v1alpha1.RegistrySynced || r.Digest != md.Status.Digest || r.Bytes != md.Status.Bytes {
			t.Errorf("registry %+v", r)
		}
	}
	if table := s.server.kubectl(t, "get", "md", sampleName); !strings.Contains(table, "100%") || !strings.Contains(table, "2/2") {
		t.Errorf("kubectl get says\n%s", table)
	}
	events := s.server.kubectl(t, "get", "events", "-o", "custom-columns=R:.reason,M:.message")
	for _, reason := range []string{"SourceResolved", "Packaged", "Synced"} {
		if !strings.Contains(events, reason) {
			t.Errorf("no event %s:\n%s", reason, events)
		}
	}
	t.Logf("%s", s.server.kubectl(t, "get", "md"))
}

// TestBusyObjects: somebody writes to the objects while they are packed, so that what the controller has read of them is
// old and its own writes are refused; each is packed once all the same.
func TestBusyObjects(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 1<<20)
	const models, writes = 8, 100
	objects := s.server.distributions()
	seen, err := objects.Watch(within(t), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Stop()
	go func() { // each write is the reason for the next one
		written := map[string]int{}
		for e := range seen.ResultChan() {
			object, ok := e.Object.(*unstructured.Unstructured)
			if !ok || written[object.GetName()] == writes {
				continue
			}
			written[object.GetName()]++
			change := fmt.Appendf(nil, `{"metadata":{"annotations":{"busy":%q}}}`, object.GetResourceVersion())
			_, _ = objects.Patch(t.Context(), object.GetName(), types.MergePatchType, change, metav1.PatchOptions{}) // the test may have ended
		}
	}()
	s.start("--packs", "8")
	for i := range models {
		name := fmt.Sprintf("busy-%d", i)
		s.put(name, files)
		s.server.create(t, theSample(t, name, func(md *v1alpha1.ModelDistribution) {
			md.Spec.ModelName, md.Spec.ModelSource.OSS.Path = v1alpha1.ModelName(name), v1alpha1.Path(name)
		}))
	}
	for i := range models {
		name := fmt.Sprintf("busy-%d", i)
		md := s.server.until(t, name, "Synced", isTrue(v1alpha1.ConditionSynced))
		if p := md.Status.Packing; p == nil || p.DoneBytes < 4<<20 || p.ReusedBytes != 0 {
			t.Errorf("packing of %s %+v", name, p)
		}
	}
}

// TestSecondVersion: one of four shards is another one; it alone is read and sent.
func TestSecondVersion(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 20<<20)
	s.put(folder, files)
	s.start()
	s.server.create(t, theSample(t, "one"))
	s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
	changed := modelFiles(2, 20<<20)
	second := maps.Clone(files)
	second["model-2.safetensors"] = changed["model-2.safetensors"]
	const folder2 = "qwen3-8b/v2"
	s.put(folder2, second)
	received := map[string]int64{hangzhou: s.members[hangzhou].Received(), beijing: s.members[beijing].Received()}
	s.server.create(t, theSample(t, "two", func(md *v1alpha1.ModelDistribution) {
		md.Spec.ModelVersion, md.Spec.ModelSource.OSS.Path = "v2", "/"+folder2
	}))
	md := s.server.until(t, "two", "Synced", isTrue(v1alpha1.ConditionSynced))
	s.holds(hangzhou, "qwen/qwen3-8b", "v2", second)
	s.holds(beijing, "test/qwen3-8b", "v2", second)
	const shard = 20 << 20
	if read := s.read(folder2, second); read != shard {
		t.Errorf("%d bytes were read of version two, of which %d are new", read, shard)
	}
	for host, before := range received {
		if sent := s.members[host].Received() - before; sent > shard+1<<20 {
			t.Errorf("%s received %d bytes of version two, of which %d are new", host, sent, shard)
		}
	}
	if p := md.Status.Packing; p.ReusedBytes < 3*shard {
		t.Errorf("packing %+v", p)
	}
}

// TestSourceFaults: each says what and where, leaves no tag, and heals by itself when it is mended.
func TestSourceFaults(t *testing.T) {
	s := newSurroundings(t)
	s.start()
	files := modelFiles(1, 5<<20)
	get := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "model-1.safetensors")
	}
	for name, tc := range map[string]struct {
		change func(*v1alpha1.ModelDistribution)
		fault  func(*http.Request) osstest.Fault
		want   []string
		mend   func(name string, md *v1alpha1.ModelDistribution)
	}{
		"no-secret": {
			change: func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Secret = "gone" },
			want:   []string{"Secret gone", "create it"},
			mend: func(string, *v1alpha1.ModelDistribution) {
				s.server.secret(t, "gone", "Opaque", map[string]string{"AccessKeyId": accessKey, "AccessKeySecret": accessPass})
			},
		},
		"odd-secret": {
			change: func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Secret = "odd" },
			want:   []string{"Secret odd", "akId", "OSS_ACCESS_KEY_ID", "password"},
			mend: func(string, *v1alpha1.ModelDistribution) {
				s.server.secret(t, "odd", "Opaque", map[string]string{"OSS_ACCESS_KEY_ID": accessKey, "OSS_ACCESS_KEY_SECRET": accessPass})
			},
		},
		"wrong-key": {
			change: func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Secret = "wrong" },
			want:   []string{bucket, "SignatureDoesNotMatch"},
			mend: func(string, *v1alpha1.ModelDistribution) {
				s.server.secret(t, "wrong", "Opaque", map[string]string{"akId": accessKey, "akSecret": accessPass})
			},
		},
		"no-bucket": {
			change: func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Bucket = "nobodys" },
			want:   []string{"nobodys", "bucket"},
			mend: func(name string, md *v1alpha1.ModelDistribution) {
				md.Spec.ModelSource.OSS.Bucket = bucket
				s.server.create(t, md)
			},
		},
		"empty": {
			change: func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Path = "/nothing" },
			want:   []string{"nothing/", "there is no object"},
			mend:   func(string, *v1alpha1.ModelDistribution) { s.put("nothing", files) },
		},
		"truncated": {
			fault: func(r *http.Request) osstest.Fault {
				if get(r) {
					return osstest.Fault{Fault: faults.Fault{Cut: true}}
				}
				return osstest.Fault{}
			},
			want: []string{"model-1.safetensors"},
		},
		"checksum": {
			fault: func(r *http.Request) osstest.Fault {
				if get(r) {
					return osstest.Fault{Fault: faults.Fault{Flip: true, At: 100}}
				}
				return osstest.Fault{}
			},
			want: []string{"model-1.safetensors", "crc64-ecma", "damaged"},
		},
		"changing": {
			fault: func(r *http.Request) osstest.Fault {
				if get(r) {
					return osstest.Fault{Fault: faults.Fault{Status: http.StatusPreconditionFailed}, Code: "PreconditionFailed"}
				}
				return osstest.Fault{}
			},
			want: []string{"model-1.safetensors", "changed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			const at = "faulty"
			s.put(at, files)
			s.server.secret(t, "wrong", "Opaque", map[string]string{"akId": accessKey, "akSecret": "guess"})
			s.server.secret(t, "odd", "Opaque", map[string]string{"user": "u", "password": "p"})
			s.failOSS(tc.fault)
			md := theSample(t, name, func(md *v1alpha1.ModelDistribution) {
				md.Spec.ModelName, md.Spec.ModelSource.OSS.Path = v1alpha1.ModelName(name), at
			})
			if tc.change != nil {
				tc.change(md)
			}
			s.server.create(t, md)
			got := s.server.until(t, name, "its failure", func(md *v1alpha1.ModelDistribution) bool {
				for _, kind := range []string{v1alpha1.ConditionSourceResolved, v1alpha1.ConditionPackaged} {
					status, _, message := conditionOf(md, kind)
					all := status == "False"
					for _, word := range tc.want {
						all = all && strings.Contains(message, word)
					}
					if all {
						return true
					}
				}
				return false
			})
			for _, c := range got.Status.Conditions {
				t.Logf("%s %s %s: %s", c.Type, c.Status, c.Reason, c.Message)
				if strings.Contains(c.Message, accessPass) || strings.Contains(c.Message, "guess") {
					t.Error("the condition tells a secret")
				}
			}
			if got.Status.Phase != v1alpha1.PhaseFailed && got.Status.Phase != v1alpha1.PhasePacking && got.Status.Phase != v1alpha1.PhasePending {
				t.Errorf("phase %s", got.Status.Phase)
			}
			if s.tagged(hangzhou, "qwen/"+name, "v1") {
				t.Error("there is a tag")
			}
			s.failOSS(nil)
			if tc.mend != nil {
				tc.mend(name, md)
			}
			s.server.until(t, name, "Synced after it was mended", isTrue(v1alpha1.ConditionSynced))
			s.holds(hangzhou, "qwen/"+name, "v1", files)
			s.server.kubectl(t, "delete", "md", name)
		})
	}
}

// TestRegistryFaults: a registry that is down, or refuses, holds up only itself, and heals by itself.
func TestRegistryFaults(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 5<<20)
	s.put(folder, files)
	state := func(md *v1alpha1.ModelDistribution, host string) v1alpha1.RegistryStatus {
		for _, r := range md.Status.Registries {
			if strings.HasPrefix(r.Reference, host) {
				return r
			}
		}
		return v1alpha1.RegistryStatus{}
	}
	s.start()

	t.Run("Down", func(t *testing.T) {
		s.fail(beijing, down)
		s.server.create(t, theSample(t, "one"))
		md := s.server.until(t, "one", "one registry of two", func(md *v1alpha1.ModelDistribution) bool {
			return state(md, hangzhou).State == v1alpha1.RegistrySynced && state(md, beijing).State == v1alpha1.RegistryFailed
		})
		t.Logf("%s", state(md, beijing).Message)
		if _, reason, _ := conditionOf(md, v1alpha1.ConditionSynced); reason != "Failed" {
			t.Errorf("Synced for the reason %s", reason)
		}
		s.fail(beijing, nil)
		s.server.until(t, "one", "Synced after it is up again", isTrue(v1alpha1.ConditionSynced))
		s.holds(beijing, "test/qwen3-8b", "v1", files)
	})

	t.Run("FirstDown", func(t *testing.T) { // the one near the source: the other is packed into
		s.fail(hangzhou, down)
		s.server.create(t, theSample(t, "two", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelName = "two" }))
		s.server.until(t, "two", "packed into the other registry", func(md *v1alpha1.ModelDistribution) bool {
			return state(md, beijing).State == v1alpha1.RegistrySynced && state(md, hangzhou).State == v1alpha1.RegistryFailed
		})
		s.fail(hangzhou, nil)
		s.server.until(t, "two", "Synced after it is up again", isTrue(v1alpha1.ConditionSynced))
		s.holds(hangzhou, "qwen/two", "v1", files)
	})

	t.Run("WrongSecret", func(t *testing.T) {
		s.server.pushSecret(t, "push-secret", pushUser, "guess")
		s.server.create(t, theSample(t, "three", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelName = "three" }))
		md := s.server.until(t, "three", "one registry of two", func(md *v1alpha1.ModelDistribution) bool {
			return state(md, beijing).State == v1alpha1.RegistrySynced && state(md, hangzhou).State == v1alpha1.RegistryFailed
		})
		if m := state(md, hangzhou).Message; !strings.Contains(m, "credentials") || strings.Contains(m, "guess") {
			t.Errorf("it says %q", m)
		}
		s.server.pushSecret(t, "push-secret", pushUser, pushPass)
		s.server.until(t, "three", "Synced with the right secret", isTrue(v1alpha1.ConditionSynced))
	})

	t.Run("Lost", func(t *testing.T) { // somebody takes the tags away
		repo := s.open(hangzhou, "qwen/three")
		if err := repo.Untag(t.Context(), "v1"); err != nil {
			t.Fatal(err)
		}
		for ctx := within(t); !s.tagged(hangzhou, "qwen/three", "v1"); {
			select {
			case <-ctx.Done():
				t.Fatal("the tag does not come back")
			case <-time.After(100 * time.Millisecond): // the status says nothing of it
			}
		}
	})
}

// killedShard is the size in bytes of each of the four shards of a packing that is killed. SHOAL_TEST_SHARD_MIB sets it
// for a figure to quote.
func killedShard(t *testing.T) int64 {
	t.Helper()
	s := os.Getenv("SHOAL_TEST_SHARD_MIB")
	if s == "" {
		return 64 << 20
	}
	mib, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return int64(mib) << 20
}

// TestKilled: a controller that is killed in the middle of a packing goes on where it was.
func TestKilled(t *testing.T) {
	s := newSurroundings(t)
	shard := killedShard(t)
	files := modelFiles(1, int(shard))
	s.put(folder, files)
	// The first three quarters of each shard pass; the rest waits until the first controller is dead.
	gate := make(chan struct{})
	s.failOSS(func(r *http.Request) osstest.Fault {
		var off, end int64
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "safetensors") && rangeOf(r, &off, &end) && end > shard*3/4 {
			return osstest.Fault{Fault: faults.Fault{Wait: gate}}
		}
		return osstest.Fault{}
	})
	first := s.start()
	s.server.create(t, theSample(t, "one"))
	s.server.until(t, "one", "half of it is packed", func(md *v1alpha1.ModelDistribution) bool {
		return md.Status.Packing != nil && md.Status.Packing.DoneBytes > 2*shard
	})
	first.end(syscall.SIGKILL)
	close(gate)
	s.failOSS(nil)
	if s.tagged(hangzhou, "qwen/qwen3-8b", "v1") {
		t.Error("half an image has a tag")
	}
	received, read := s.members[hangzhou].Received(), s.read(folder, files)
	s.start()
	s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
	s.holds(hangzhou, "qwen/qwen3-8b", "v1", files)
	again, sent := s.read(folder, files)-read, s.members[hangzhou].Received()-received
	t.Logf("before the kill %d MiB were read and %d received, after it %d and %d, of %d", read>>20, received>>20, again>>20, sent>>20, 4*shard>>20)
	if again > 3*shard || sent > 3*shard {
		t.Errorf("after the kill %d bytes were read and %d sent, of %d", again, sent, 4*shard)
	}
}

// TestRival: of two objects of one name and version with other bytes the later is refused.
func TestRival(t *testing.T) {
	s := newSurroundings(t)
	s.put(folder, modelFiles(1, 1<<20))
	s.put("other", modelFiles(2, 1<<20))
	s.start()
	s.server.create(t, theSample(t, "first"))
	s.server.until(t, "first", "Packaged", isTrue(v1alpha1.ConditionPackaged))
	s.server.create(t, theSample(t, "same", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Path = folder + "/" }))
	s.server.create(t, theSample(t, "later", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Path = "other" }))
	md := s.server.until(t, "later", "refused", func(md *v1alpha1.ModelDistribution) bool {
		_, reason, message := conditionOf(md, v1alpha1.ConditionPackaged)
		// The API's times are whole seconds: the other two may be of one age.
		return reason == "Refused" && (strings.Contains(message, "default/first") || strings.Contains(message, "default/same"))
	})
	if md.Status.Phase != v1alpha1.PhaseFailed {
		t.Errorf("phase %s", md.Status.Phase)
	}
	same := s.server.until(t, "same", "Synced: it has the same bytes", isTrue(v1alpha1.ConditionSynced))
	if first := s.server.until(t, "first", "Synced", isTrue(v1alpha1.ConditionSynced)); first.Status.Digest != same.Status.Digest {
		t.Error("the same bytes have two digests")
	}
	// The second of the two that are the same goes with its images, which stay: the first names them too.
	s.server.kubectl(t, "delete", "md", "same")
	s.server.kubectl(t, "patch", "md", "first", "--type=merge", "-p", `{"spec":{"deletionPolicy":"Delete"}}`)
	if !s.tagged(hangzhou, "qwen/qwen3-8b", "v1") {
		t.Error("the tag is gone")
	}
	s.server.kubectl(t, "delete", "md", "later")
	s.server.kubectl(t, "delete", "md", "first")
	if s.tagged(hangzhou, "qwen/qwen3-8b", "v1") || s.tagged(beijing, "test/qwen3-8b", "v1") {
		t.Error("deletionPolicy Delete leaves a tag")
	}
}

// TestPaused: nothing begins while it is so.
func TestPaused(t *testing.T) {
	s := newSurroundings(t)
	s.put(folder, modelFiles(1, 1<<20))
	s.start()
	s.server.create(t, theSample(t, "one", func(md *v1alpha1.ModelDistribution) { md.Spec.Paused = true }))
	s.server.until(t, "one", "Paused", func(md *v1alpha1.ModelDistribution) bool { return md.Status.Phase == v1alpha1.PhasePaused })
	if n := s.oss.Requests(); len(n) > 0 {
		t.Errorf("the source was asked: %v", n)
	}
	s.server.kubectl(t, "patch", "md", "one", "--type=merge", "-p", `{"spec":{"paused":false}}`)
	s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
}

// rangeOf reads the Range of a request; off is its first byte, end the one behind its last.
func rangeOf(r *http.Request, off, end *int64) bool {
	n, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", off, end)
	*end++
	return err == nil && n == 2
}

// TestMount: two repositories of one registry get the model's bytes once.
func TestMount(t *testing.T) {
	s := newSurroundings(t)
	const shard = 5 << 20
	files := modelFiles(1, shard)
	s.put(folder, files)
	s.start()
	s.server.create(t, theSample(t, "one", func(md *v1alpha1.ModelDistribution) {
		second := md.Spec.Targets.Registries[0]
		second.Namespace = "other"
		md.Spec.Targets.Registries = append(md.Spec.Targets.Registries, second)
	}))
	s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
	s.holds(hangzhou, "other/qwen3-8b", "v1", files)
	if received := s.members[hangzhou].Received(); received > 4*shard+1<<20 {
		t.Errorf("the registry received %d bytes for two repositories, of a model of %d", received, 4*shard)
	}
}
