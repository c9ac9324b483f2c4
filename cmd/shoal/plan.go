package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/controller"
)

type planFlags struct {
	hub         hubFlags
	file        string
	force, json bool
	reach       []string
}

func planCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "plan -f FILE",
		Short: "Say what applying ModelDistributions would move, and whether it fits",
		Long: `Say what would happen if the ModelDistributions of FILE (- is stdin) were applied: how much is read from
the source and sent to each registry, what earlier versions spare, which clusters and nodes get it, and
whether it fits these.

It asks the source and the registries as the controller would, from here and with the Secrets that the
files name, which the kubeconfig's user must be allowed to get. It lists and looks up; it reads nothing of
the model, and writes nothing.

It ends with exit code 1 when something is in the way.`,
		Example: "  shoal plan -f examples/modeldistribution.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
	fl.BoolVar(&f.force, "force-conflicts", false, "as apply would with it: take over fields that others have set to other values")
	fl.StringArrayVar(&f.reach, "reach", nil, reachHelp)
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	_ = cmd.MarkFlagRequired("file") // it exists
	return cmd
}

func (f *planFlags) run(cmd *cobra.Command, h *hub) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	reach, err := parseReach(f.reach)
	if err != nil {
		return err
	}
	objects, err := readDistributions(cmd.InOrStdin(), f.file, h)
	if err != nil {
		return err
	}
	reader, err := client.New(h.config, client.Options{Scheme: clientgoscheme.Scheme})
	if err != nil {
		return worded(err)
	}
	p := &planner{hub: h, reader: reader, force: f.force, reach: reach}
	plans := []*outlook{}
	var errs []error
	for _, object := range objects {
		o, err := p.plan(ctx, object)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("modeldistribution %s/%s: %w", object.GetNamespace(), object.GetName(), err))
			continue
		}
		if n := len(o.InTheWay); n > 0 {
			errs = append(errs, fmt.Errorf("modeldistribution %s/%s: %s in the way", o.Namespace, o.Name, counted(n, "thing")))
		}
		if !f.json {
			if len(plans) > 0 {
				fmt.Fprintln(out, "\n---")
			}
			if _, err := io.WriteString(out, o.page()); err != nil {
				return err
			}
		}
		plans = append(plans, o)
	}
	if f.json {
		errs = append(errs, json.NewEncoder(out).Encode(map[string]any{"plans": plans}))
	}
	return errors.Join(errs...)
}

// planner finds out what a plan is made of.
type planner struct {
	*hub
	reader client.Reader // of Secrets and nodes
	force  bool
	reach  map[string]string
}

// plan says what applying o would do.
func (p *planner) plan(ctx context.Context, o *unstructured.Unstructured) (*outlook, error) {
	result, after, notes, err := p.tryApply(ctx, o)
	if err != nil {
		return nil, err
	}
	md, err := distribution(after)
	if err != nil {
		return nil, err
	}
	all, more, err := p.others(ctx, md.Namespace)
	if err != nil {
		return nil, err
	}
	survey := controller.TakeSurvey(ctx, controller.SurveyConfig{Sources: openSource(p.reach), Secrets: p.reader, Reach: p.reach}, md, all)
	out := foresee(md, survey, p.nodes(ctx, md.Spec.Targets.Clusters))
	out.Result = result
	for _, n := range append(notes, more...) {
		out.note("%s", n)
	}
	return out, nil
}

// tryApply has the API server check o, and returns it as it would be. Who may not apply gets it as it stands.
func (p *planner) tryApply(ctx context.Context, o *unstructured.Unstructured) (result string, after *unstructured.Unstructured, notes []string, err error) {
	before, after, err := p.send(ctx, o, p.force, true)
	switch {
	case apierrors.IsForbidden(err):
		return "", o, []string{"the API server has not checked the file: " + worded(err).Error()}, nil
	case err != nil:
		return "", nil, nil, worded(err)
	}
	return changed(before, after), after, nil, nil
}

// others are the ModelDistributions among which earlier versions are looked for, as far as the user may see them.
func (p *planner) others(ctx context.Context, namespace string) (all []v1alpha1.ModelDistribution, notes []string, err error) {
	for _, s := range []selection{{}, {namespace: namespace}} {
		found, err := p.find(ctx, s)
		if apierrors.IsForbidden(err) {
			notes = append(notes, "earlier versions that are not seen from here may spare more: "+worded(err).Error())
			continue
		}
		if err != nil {
			return nil, nil, worded(err)
		}
		for i := range found.Items {
			d, err := distribution(&found.Items[i])
			if err != nil {
				return nil, nil, err
			}
			all = append(all, *d)
		}
		break
	}
	return all, notes, nil
}

// nodes are those of the kubeconfig's cluster that get the model before a Pod asks.
func (p *planner) nodes(ctx context.Context, t *v1alpha1.ClusterTargets) nodesFound {
	if t == nil || t.PreloadConfig == nil {
		return nodesFound{}
	}
	labels := client.MatchingLabels{}
	for key, value := range t.PreloadConfig.NodeSelector {
		labels[key] = string(value)
	}
	var list corev1.NodeList
	if err := p.reader.List(ctx, &list, labels); err != nil {
		return nodesFound{err: worded(err)}
	}
	var found nodesFound
	for i := range list.Items {
		has := list.Items[i].Status.Allocatable
		found.nodes = append(found.nodes, nodeOutlook{
			Name: list.Items[i].Name, DiskBytes: amount(has.StorageEphemeral()), MemoryBytes: amount(has.Memory()),
		})
	}
	return found
}

func amount(q *resource.Quantity) int64 { return max(q.Value(), 0) }
