package controlplane

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// TestCommands: the commands by which people follow a ModelDistribution; the test is the controller.
func TestCommands(t *testing.T) {
	c := &commands{server: newServer(t), binary: program(t)}
	t.Run("Apply", c.apply)
	t.Run("Refused", c.refused)
	t.Run("Conflict", c.conflict)
	t.Run("Status", c.status)
	t.Run("Watch", c.watch)
	t.Run("WatchForbidden", c.watchForbidden)
	t.Run("Wait", c.wait)
	t.Run("Explain", c.explain)
}

// commands runs the program against an API server.
type commands struct {
	*server
	binary string
}

func (c *commands) command(t *testing.T, stdin string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(within(t), c.binary, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "HOME="+t.TempDir(),
		"ALIBABA_CLOUD_ACCESS_KEY_ID="+accessKey, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+accessPass)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// run returns what the program writes to both, and its exit code.
func (c *commands) run(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := c.command(t, stdin, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("shoal %v: %v", args, err)
	}
	return string(out), errs.String(), cmd.ProcessState.ExitCode()
}

// says runs the program, which is to succeed, and compares what it writes.
func (c *commands) says(t *testing.T, stdin, want string, args ...string) {
	t.Helper()
	out, stderr, code := c.run(t, stdin, args...)
	if code != 0 || !strings.Contains(out, want) {
		t.Errorf("shoal %v: exit code %d\n%s%s\nwant: %s", args, code, out, stderr, want)
	}
}

// fails runs the program, which is to fail and to write all of want to stderr.
func (c *commands) fails(t *testing.T, stdin string, want []string, args ...string) {
	t.Helper()
	out, stderr, code := c.run(t, stdin, args...)
	for _, w := range want {
		if !strings.Contains(stderr, w) {
			t.Errorf("shoal %v\n%s\nwant in it: %s", args, stderr, w)
		}
	}
	if code != 1 {
		t.Errorf("shoal %v: exit code %d\n%s", args, code, out)
	}
}

// lines are what a program that goes on writes.
type lines struct {
	cmd  *exec.Cmd
	line chan string
	seen []string
}

func (c *commands) start(t *testing.T, stdin string, args ...string) *lines {
	t.Helper()
	cmd := c.command(t, stdin, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	l := &lines{cmd: cmd, line: make(chan string)}
	go func() {
		defer close(l.line)
		defer r.Close()
		for s := bufio.NewScanner(r); s.Scan(); {
			l.line <- s.Text()
		}
	}()
	return l
}

// expect reads until a line has all the words of want, one after the other.
func (l *lines) expect(t *testing.T, want string) {
	t.Helper()
	for line := range l.line {
		l.seen = append(l.seen, line)
		if strings.Contains(strings.Join(strings.Fields(line), " "), want) {
			return
		}
	}
	t.Fatalf("%v ended (%v) without %q:\n%s", l.cmd.Args[1:], l.cmd.Wait(), want, strings.Join(l.seen, "\n"))
}

// end reads what is left, and returns it and the exit code.
func (l *lines) end(t *testing.T) (rest string, code int) {
	t.Helper()
	for line := range l.line {
		rest += line + "\n"
	}
	var exit *exec.ExitError
	if err := l.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return rest, l.cmd.ProcessState.ExitCode()
}

// sample is the example with another name and version.
func sample(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(examples, "modeldistribution.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("name: "+sampleName, "name: "+name, `"v1"`, name).Replace(string(raw))
}

// report writes a status, as the controller would.
func (c *commands) report(t *testing.T, name string, status v1alpha1.ModelDistributionStatus) {
	t.Helper()
	status.ObservedGeneration = must(c.distributions().Get(within(t), name, metav1.GetOptions{}))(t).GetGeneration()
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		t.Fatal(err)
	}
	must(c.distributions().Patch(within(t), name, types.MergePatchType, patch, metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict}, "status"))(t)
}

func condition(name string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: name, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.Now()}
}

func (c *commands) apply(t *testing.T) {
	file := filepath.Join(examples, "modeldistribution.yaml")
	c.says(t, "", "modeldistribution default/"+sampleName+" created (dry run)\n", "apply", "-f", file, "--dry-run")
	c.fails(t, "", []string{"there is no ModelDistribution " + sampleName + " in namespace default"}, "status", sampleName)
	c.says(t, "", "modeldistribution default/"+sampleName+" created\n", "apply", "-f", file)
	c.says(t, "", "modeldistribution default/"+sampleName+" unchanged\n", "apply", "-f", file)
	both := sample(t, sampleName) + "  paused: true\n---\n" + sample(t, "second")
	c.says(t, both, "modeldistribution default/"+sampleName+" configured (dry run)\nmodeldistribution default/second created (dry run)\n", "apply", "-f", "-", "--dry-run")
	c.says(t, both, `{"applied":[{"namespace":"default","name":"`+sampleName+`","result":"configured"},{"namespace":"default","name":"second","result":"created"}],"dry_run":false}`,
		"apply", "-f", "-", "--json")
	// A field that the file no longer names goes, as it was set by this command alone.
	c.says(t, "", " configured\n", "apply", "-f", file)
	if o := must(c.distributions().Get(within(t), sampleName, metav1.GetOptions{}))(t); o.Object["spec"].(map[string]any)["paused"] != nil {
		t.Error("spec.paused stayed")
	}
	// A status changes nothing, and does not matter in a file.
	c.report(t, sampleName, fullStatus())
	c.says(t, c.kubectl(t, "get", "md", sampleName, "-o", "yaml"), " unchanged (dry run)\n", "apply", "-f", "-", "--dry-run")
}

// refused: each of the API server's objections on a line of its own, and the other documents go on.
func (c *commands) refused(t *testing.T) {
	wrong := strings.NewReplacer("modelName: qwen3-8b", "modelName: Qwen3-8B", "bucket: models-poc", "bucket: oss://models", "instanceName: model-distribution\n        region: cn-beijing", "region: cn-beijing").Replace(sample(t, "wrong"))
	text := wrong + "\n---\n" + sample(t, "third")
	out, stderr, code := c.run(t, text, "apply", "-f", "-")
	for _, want := range []string{
		"shoal: modeldistribution default/wrong: refused:\n",
		"\n  spec.modelName: \"Qwen3-8B\": modelName becomes part of an image's name",
		"\n  spec.modelSource.oss.bucket: \"oss://models\": give the bucket's name alone",
		"\n  spec.targets.registries[1]: an ACR registry is found by its instance",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%s\nwant: %s", stderr, want)
		}
	}
	if code != 1 || out != "modeldistribution default/third created\n" {
		t.Errorf("exit code %d\n%s", code, out)
	}
	c.fails(t, sample(t, "wrong")+"  modelname: a\n", []string{"refused:", "\n  spec.modelname: there is no such field"}, "apply", "-f", "-")
	c.fails(t, strings.Replace(sample(t, "wrong"), "nodegroup: dev", "nodegroup: true", 1), []string{"nodeSelector.nodegroup: expected string, got true"}, "apply", "-f", "-")
	c.fails(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n", []string{`document 1: it is apiVersion "v1", kind "Secret"`}, "apply", "-f", "-")
}

func (c *commands) conflict(t *testing.T) {
	c.kubectl(t, "patch", "md", "second", "--type=merge", "--field-manager=other", "-p", `{"spec":{"modelVersion":"other"}}`)
	c.fails(t, sample(t, "second"), []string{"--force-conflicts", "\n  spec.modelVersion: conflict with \"other\""}, "apply", "-f", "-")
	c.says(t, sample(t, "second"), "default/second configured", "apply", "-f", "-", "--force-conflicts")
}

func (c *commands) status(t *testing.T) {
	c.kubectl(t, "create", "namespace", "team")
	c.says(t, "", "There are no ModelDistributions in namespace team.\n", "status", "-n", "team")
	c.says(t, strings.Replace(sample(t, "fourth"), "namespace: default", "namespace: team", 1), "team/fourth created", "apply", "-f", "-")
	out, _, _ := c.run(t, "", "status", "-A")
	squeezed := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{
		"NAMESPACE NAME MODEL VERSION PHASE PACKED REGISTRIES CLUSTERS WARM AGE",
		"default " + sampleName + " qwen3-8b v1 Preloading 100% 2/2 3/3 11/12",
		"team fourth qwen3-8b fourth Pending - - - -",
	} {
		if !strings.Contains(squeezed, want) {
			t.Errorf("%s\nwant: %s", out, want)
		}
	}
	page, _, _ := c.run(t, "", "status", sampleName)
	squeezed = strings.Join(strings.Fields(page), " ")
	for _, want := range []string{
		"Name: default/" + sampleName, "Source: oss://models-poc/qwen3-8b/v1", "Image: " + digest + ", 16GiB", "Packed: 100%, 16GiB of 16GiB, 6GiB of it reused",
		"Synced 16GiB of 16GiB as it should be", "member-1 yes 12 11 12 1 11 of 12 nodes are warm", "node-7 member-1 MemoryTooSmall 16 GiB are missing",
	} {
		if !strings.Contains(squeezed, want) {
			t.Errorf("%s\nwant: %s", page, want)
		}
	}
	var d v1alpha1.ModelDistribution
	raw, _, _ := c.run(t, "", "status", sampleName, "--json")
	if err := json.Unmarshal([]byte(raw), &d); err != nil || d.Kind != "ModelDistribution" || d.Status.Clusters[0].Nodes.Wanted != 12 {
		t.Errorf("%v\n%s", err, raw)
	}
	var list v1alpha1.ModelDistributionList
	raw, _, _ = c.run(t, "", "status", "-n", "team", "--json")
	if err := json.Unmarshal([]byte(raw), &list); err != nil || len(list.Items) != 1 || list.Items[0].Name != "fourth" {
		t.Errorf("%v\n%s", err, raw)
	}
}

// watch: changes as they come, until ^C or until the object is gone.
func (c *commands) watch(t *testing.T) {
	page, table := c.start(t, "", "status", "second", "--watch"), c.start(t, "", "status", "-w")
	page.expect(t, "Phase: Pending")
	table.expect(t, "third qwen3-8b third Pending - - - -")
	c.report(t, "second", v1alpha1.ModelDistributionStatus{
		Phase: v1alpha1.PhasePacking, Packing: &v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 4 << 30, BytesPerSecond: 128 << 20},
		Summary: v1alpha1.Summary{Packed: "25%"},
	})
	page.expect(t, "Phase: Packing")
	page.expect(t, "Packed: 25%, 4GiB of 16GiB, 128MiB/s, 96s left")
	table.expect(t, "second qwen3-8b second Packing 25% - - -")
	for _, l := range []*lines{page, table} {
		if err := l.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if rest, code := l.end(t); rest != "" || code != 0 {
			t.Errorf("%v after ^C: exit code %d\n%s", l.cmd.Args[1:], code, rest)
		}
	}
	gone := c.start(t, "", "status", "second", "--watch")
	gone.expect(t, "Phase: Packing")
	c.kubectl(t, "delete", "md", "second")
	if rest, code := gone.end(t); !strings.Contains(rest, "default/second is deleted\n") || code != 0 {
		t.Errorf("after its end: exit code %d\n%s", code, rest)
	}
}

// watchForbidden: who may list, but not watch, is told so.
func (c *commands) watchForbidden(t *testing.T) {
	file := c.as(t, "reader", "--verb=get,list", "--resource=modeldistributions.ack.alibabacloud.com")
	c.says(t, "", "third", "status", "--kubeconfig", file)
	c.fails(t, "", []string{`User "reader" cannot watch resource "modeldistributions"`}, "status", "--watch", "--kubeconfig", file)
}

func (c *commands) wait(t *testing.T) {
	all := func(phase v1alpha1.Phase, conditions ...metav1.Condition) v1alpha1.ModelDistributionStatus {
		return v1alpha1.ModelDistributionStatus{Phase: phase, Conditions: conditions}
	}
	ready := all(v1alpha1.PhaseReady, condition("Ready", metav1.ConditionTrue, "Ready", ""))
	failed := all(v1alpha1.PhaseFailed, condition("SourceResolved", metav1.ConditionFalse, "SecretMissing", "there is no Secret access: create it"))

	both := c.start(t, sample(t, "good")+"---\n"+sample(t, "poor"), "apply", "-f", "-", "--wait", "--json")
	both.expect(t, ": Pending")
	both.expect(t, ": Pending") // of the other
	c.report(t, "good", all(v1alpha1.PhasePacking))
	both.expect(t, "default/good: Packing")
	c.report(t, "poor", failed)
	c.report(t, "good", ready)
	rest, code := both.end(t)
	for _, want := range []string{
		"default/good: Ready", "shoal: modeldistribution default/poor: The source cannot be used (SecretMissing): there is no Secret access: create it.",
		`{"namespace":"default","name":"good","result":"created","phase":"Ready"},{"namespace":"default","name":"poor","result":"created","phase":"Failed"}`,
	} {
		if !strings.Contains(rest, want) {
			t.Errorf("%s\nwant: %s", rest, want)
		}
	}
	if code != 1 {
		t.Errorf("exit code %d", code)
	}

	c.says(t, sample(t, "good"), "default/good unchanged", "apply", "-f", "-", "--wait")
	c.fails(t, sample(t, "good")+"  paused: true\n", []string{"default/good: spec.paused is true"}, "apply", "-f", "-", "--wait")
	// What was Failed before the change is waited for again.
	c.fails(t, sample(t, "poor")+"  deletionPolicy: Delete\n", []string{"default/poor: not Ready after 100ms", "The controller has not looked at the last change yet"},
		"apply", "-f", "-", "--wait", "--timeout", "100ms")
}

func (c *commands) explain(t *testing.T) {
	c.says(t, "", "1 of 12 nodes cannot get the model: node-7 has MemoryTooSmall: 16 GiB are missing.\n", "explain", sampleName)
	var f struct {
		Name, Phase, State, Says string
		Chain                    []struct{ Kind, Name string }
	}
	raw, _, _ := c.run(t, "", "explain", sampleName, "--json")
	if err := json.Unmarshal([]byte(raw), &f); err != nil || f.Name != sampleName || f.Phase != "Preloading" || f.State != "Held" || len(f.Chain) != 2 || f.Chain[1].Name != "node-7" {
		t.Errorf("%v\n%s", err, raw)
	}
	c.says(t, "", "No controller has looked at it yet.\n", "explain", "third")
	c.fails(t, "", []string{"there is no ModelDistribution none in namespace default"}, "explain", "none")

	must(c.distributions().Patch(within(t), "third", types.MergePatchType, []byte(`{"metadata":{"finalizers":["shoal.dev/replicas"]}}`), metav1.PatchOptions{}))(t)
	c.kubectl(t, "delete", "md", "third", "--wait=false")
	c.says(t, "", "It is being deleted, and waits for what is to be done first: finalizers shoal.dev/replicas.\n", "explain", "third")
}
