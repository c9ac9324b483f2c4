package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// fieldManager is who owns the fields that shoal apply sets.
const fieldManager = "shoal"

type applyFlags struct {
	hub                       hubFlags
	file                      string
	dryRun, force, wait, json bool
	timeout                   time.Duration
}

func applyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or change ModelDistributions, and wait for them",
		Long: `Create or change the ModelDistributions of FILE (- is stdin), which may hold several YAML documents. They
are applied on the API server: fields that others have set, and FILE does not name, stay as they are. Of several
documents, one that is refused does not hold up the others.

With --wait it ends when all of them are Ready, or one has failed or is paused, which is an error.`,
		Example: "  shoal apply -f examples/modeldistribution.yaml --wait --timeout 1h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.timeout > 0 && !f.wait {
				return errors.New("--timeout is how long --wait waits: give both")
			}
			h, err := f.hub.open(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return f.run(cmd, h)
		},
	}
	f.hub.register(cmd)
	fl := cmd.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "file with ModelDistributions; - is stdin")
	fl.BoolVar(&f.dryRun, "dry-run", false, "have the API server check it, and change nothing")
	fl.BoolVar(&f.force, "force-conflicts", false, "take over fields that others have set to other values")
	fl.BoolVar(&f.wait, "wait", false, "wait until they are Ready, or one has failed")
	fl.DurationVar(&f.timeout, "timeout", 0, "how long --wait waits; 0 is without end")
	fl.BoolVar(&f.json, "json", false, "print one JSON object on the last line of stdout")
	_ = cmd.MarkFlagRequired("file") // it exists
	cmd.MarkFlagsMutuallyExclusive("dry-run", "wait")
	return cmd
}

// applied is what became of one document.
type applied struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Result    string         `json:"result"`          // created, configured or unchanged
	Phase     v1alpha1.Phase `json:"phase,omitempty"` // after --wait
}

func (f *applyFlags) run(cmd *cobra.Command, h *hub) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	objects, err := readDistributions(cmd.InOrStdin(), f.file, h)
	if err != nil {
		return err
	}
	var done []*applied
	var errs []error
	for _, o := range objects {
		result, err := f.apply(ctx, h, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("modeldistribution %s/%s: %w", o.GetNamespace(), o.GetName(), err))
			continue
		}
		done = append(done, &applied{Namespace: o.GetNamespace(), Name: o.GetName(), Result: result})
		if !f.json {
			fmt.Fprintf(out, "modeldistribution %s/%s %s%s\n", o.GetNamespace(), o.GetName(), result, f.dry())
		}
	}
	if f.wait {
		errs = append(errs, f.waitFor(ctx, h, done, cmd.ErrOrStderr()))
	}
	if f.json {
		if done == nil {
			done = []*applied{}
		}
		errs = append(errs, json.NewEncoder(out).Encode(map[string]any{"applied": done, "dry_run": f.dryRun}))
	}
	return errors.Join(errs...)
}

func (f *applyFlags) dry() string {
	if f.dryRun {
		return " (dry run)"
	}
	return ""
}

// maxFile is the most that a file may hold: far more than an API server takes of one object.
const maxFile = 16 << 20

// readDistributions reads the documents of file, - being stdin, and fills in the namespace. All of them are
// read and looked at before the first is sent.
func readDistributions(stdin io.Reader, file string, h *hub) ([]*unstructured.Unstructured, error) {
	in, what := stdin, "stdin"
	if file != "-" {
		what = file
		opened, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		in = opened
	}
	var all []*unstructured.Unstructured
	seen := map[selection]bool{}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(io.LimitReader(in, maxFile)))
	for n := 1; ; n++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		o, err := parseDistribution(text)
		if err != nil {
			return nil, fmt.Errorf("%s, document %d: %w", what, n, err)
		}
		if o == nil {
			continue
		}
		switch ns := o.GetNamespace(); {
		case ns == "":
			o.SetNamespace(h.namespace)
		case h.given && ns != h.namespace:
			return nil, fmt.Errorf("%s, document %d: %s is in namespace %s, and --namespace is %s", what, n, o.GetName(), ns, h.namespace)
		}
		key := selection{o.GetNamespace(), o.GetName()}
		if seen[key] {
			return nil, fmt.Errorf("%s, document %d: %s/%s is there twice", what, n, key.namespace, key.name)
		}
		seen[key] = true
		all = append(all, o)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: there is no ModelDistribution in it", what)
	}
	return all, nil
}

// parseDistribution reads one document; nil is one without content.
func parseDistribution(text []byte) (*unstructured.Unstructured, error) {
	raw, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, err
	}
	if string(raw) == "null" {
		return nil, nil
	}
	var head metav1.PartialObjectMetadata
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("not a Kubernetes object: %w", err)
	}
	want := v1alpha1.GroupVersion().WithKind("ModelDistribution")
	if got := head.GroupVersionKind(); got != want {
		return nil, fmt.Errorf("it is apiVersion %q, kind %q: only %s, kind %s is applied here, and kubectl apply does the others",
			head.APIVersion, head.Kind, want.GroupVersion(), want.Kind)
	}
	if head.Name == "" {
		return nil, errors.New("give metadata.name")
	}
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON(raw); err != nil {
		return nil, err
	}
	delete(o.Object, "status") // the controller's alone; it is there in what kubectl get wrote
	o.SetManagedFields(nil)
	return o, nil
}

// apply sends one object and says what became of it: created, configured or unchanged.
func (f *applyFlags) apply(ctx context.Context, h *hub, o *unstructured.Unstructured) (string, error) {
	before, after, err := h.send(ctx, o, f.force, f.dryRun)
	if err != nil {
		return "", worded(err)
	}
	return changed(before, after), nil
}

// send applies o, and returns what there was before, nil for nothing, and what there is then. The error is the API
// server's.
func (h *hub) send(ctx context.Context, o *unstructured.Unstructured, force, dryRun bool) (before, after *unstructured.Unstructured, err error) {
	objects := h.distributions.Namespace(o.GetNamespace())
	before, err = objects.Get(ctx, o.GetName(), metav1.GetOptions{})
	if isNoObject(err) {
		before = nil
	} else if err != nil {
		return nil, nil, err
	}
	raw, err := o.MarshalJSON()
	if err != nil {
		return nil, nil, err
	}
	options := metav1.PatchOptions{FieldManager: fieldManager, FieldValidation: metav1.FieldValidationStrict}
	if force {
		options.Force = new(true)
	}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	after, err = objects.Patch(ctx, o.GetName(), types.ApplyPatchType, raw, options)
	return before, after, err
}

// changed says what became of an object: created, configured or unchanged.
func changed(before, after *unstructured.Unstructured) string {
	switch {
	case before == nil:
		return "created"
	case equality.Semantic.DeepEqual(wanted(before), wanted(after)):
		return "unchanged"
	}
	return "configured"
}

// wanted is o without what changes of itself.
func wanted(o *unstructured.Unstructured) map[string]any {
	o = o.DeepCopy()
	delete(o.Object, "status")
	for _, field := range []string{"managedFields", "resourceVersion", "generation"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	return o.Object
}

// waitFor waits for all of them at once, notes their phases, and joins the errors of those that do not become
// Ready.
func (f *applyFlags) waitFor(ctx context.Context, h *hub, all []*applied, w io.Writer) error {
	limited := ctx
	if f.timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	show := &waitLines{w: w, rewrite: isTerminal(w) && len(all) == 1}
	defer show.end()
	errs := make([]error, len(all))
	var group errgroup.Group
	for i, a := range all {
		group.Go(func() error {
			errs[i] = f.waitForOne(limited, h, a, show)
			return nil
		})
	}
	_ = group.Wait() // the errors are in errs: one that fails ends no other
	return errors.Join(errs...)
}

func (f *applyFlags) waitForOne(ctx context.Context, h *hub, a *applied, show *waitLines) error {
	var last *v1alpha1.ModelDistribution
	err := h.follow(ctx, selection{a.Namespace, a.Name}, func(all []*v1alpha1.ModelDistribution) (bool, error) {
		if len(all) == 0 {
			return false, errors.New("it was deleted")
		}
		last = all[0]
		a.Phase = phase(last)
		show.show(last)
		return settled(last)
	})
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		err = fmt.Errorf("not Ready after %s", f.timeout)
		if last != nil {
			err = fmt.Errorf("%w. %s", err, explain(last))
		}
	}
	if err != nil {
		return fmt.Errorf("modeldistribution %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

// settled reports whether waiting for d is over: it is Ready, or, which is an error, it will not become so
// without help.
func settled(d *v1alpha1.ModelDistribution) (bool, error) {
	switch f := explain(d); {
	case f.State == findingReady:
		return true, nil
	case f.State == findingPaused, f.State == findingDeleting, f.State == findingHeld && d.Status.Phase == v1alpha1.PhaseFailed:
		return true, errors.New(f.String())
	}
	return false, nil
}

// String is the finding on one line, without its chain.
func (f finding) String() string { return oneLine(f.Says + ifAny(" ", f.Do)) }

// waitLines shows how far what is waited for is: a line each time that one changes, or, on a terminal and for
// one object, one line that changes.
type waitLines struct {
	w       io.Writer
	rewrite bool

	mu   sync.Mutex
	last map[selection]string
}

func (l *waitLines) show(d *v1alpha1.ModelDistribution) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, line := selection{d.Namespace, d.Name}, waitLine(d)
	if l.last == nil {
		l.last = map[selection]string{}
	}
	if l.last[key] == line {
		return
	}
	l.last[key] = line
	if l.rewrite {
		// To the line's beginning, clear it, and cut what is too long: what had wrapped could not be cleared.
		fmt.Fprint(l.w, "\r\x1b[K\x1b[?7l"+line+"\x1b[?7h")
		return
	}
	fmt.Fprintln(l.w, line)
}

// end leaves a line that was written again and again.
func (l *waitLines) end() {
	if l.rewrite && len(l.last) > 0 {
		fmt.Fprintln(l.w)
	}
}

// waitLine is how far d is, in one line.
func waitLine(d *v1alpha1.ModelDistribution) string {
	s := d.Status.Summary
	says := []string{fmt.Sprintf("%s/%s: %s", d.Namespace, d.Name, phase(d))}
	if s.Packed != "" {
		packed := "packed " + s.Packed
		if p := d.Status.Packing; p != nil && p.BytesPerSecond > 0 && d.Status.Digest == "" {
			packed += fmt.Sprintf(" (%s/s, %s left)", size(p.BytesPerSecond), remaining(p))
		}
		says = append(says, packed)
	}
	for _, part := range []struct{ name, value string }{{"registries", s.Registries}, {"clusters", s.Clusters}, {"warm", s.Warm}} {
		if part.value != "" {
			says = append(says, part.name+" "+part.value)
		}
	}
	return oneLine(strings.Join(says, ", "))
}
