package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-project/shoal/controller"
)

// packerFlags say where models are packed.
type packerFlags struct {
	packer, image    string
	requests, limits map[string]string
	nodes            map[string]string
}

func (f *packerFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.packer, "packer", "inprocess", "where models are packed: inprocess, or job: in a Job for each, which outlives the controller")
	fl.StringVar(&f.image, "packer-image", "", "with --packer=job: image whose entrypoint is shoal")
	fl.StringToStringVar(&f.requests, "packer-requests", map[string]string{"cpu": "1", "memory": "256Mi"}, "with --packer=job: resources that a Pod asks for")
	fl.StringToStringVar(&f.limits, "packer-limits", map[string]string{"memory": "1Gi"}, "with --packer=job: resources that a Pod may take")
	fl.StringToStringVar(&f.nodes, "packer-node-selector", nil, "with --packer=job: labels of the nodes that pack")
}

// jobs is how Jobs look, nil where there are none.
func (f *packerFlags) jobs() (*controller.JobConfig, error) {
	switch {
	case f.packer == "inprocess":
		return nil, nil
	case f.packer != "job":
		return nil, fmt.Errorf("--packer %q: want job or inprocess", f.packer)
	case f.image == "":
		return nil, errors.New("--packer=job needs --packer-image")
	}
	requests, err := quantities("--packer-requests", f.requests)
	if err != nil {
		return nil, err
	}
	limits, err := quantities("--packer-limits", f.limits)
	if err != nil {
		return nil, err
	}
	return &controller.JobConfig{Image: f.image, NodeSelector: f.nodes, Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}, nil
}

func quantities(flag string, values map[string]string) (corev1.ResourceList, error) {
	out := corev1.ResourceList{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		q, err := resource.ParseQuantity(values[name])
		if err != nil {
			return nil, fmt.Errorf("%s %s=%s: %w", flag, name, values[name], err)
		}
		out[corev1.ResourceName(name)] = q
	}
	return out, nil
}

// packCache keeps the controller from holding Jobs that are not its own.
func packCache() cache.Options {
	ours, err := labels.Parse(controller.PackLabel)
	if err != nil { // the label is a constant
		panic(err)
	}
	return cache.Options{ByObject: map[client.Object]cache.ByObject{&batchv1.Job{}: {Label: ours}}}
}

// packJobCommand is what a Job of --packer=job runs.
func packJobCommand() *cobra.Command {
	var (
		pod        controller.PodConfig
		kubeconfig string
		d          = daemon{name: "pack-job"}
	)
	cmd := &cobra.Command{
		Use:    "pack-job",
		Short:  "Pack one model as the controller says (run by the controller's Jobs)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			config.Timeout = 30 * time.Second // a request: without an answer it is sent again
			server, err := typedcorev1.NewForConfig(config)
			if err != nil {
				return err
			}
			pod.ConfigMaps, pod.Sources, pod.Log = server, openSource, d.log
			return controller.RunPod(cmd.Context(), pod)
		},
		PreRunE: func(cmd *cobra.Command, _ []string) error { return d.setup(cmd) },
	}
	fl := cmd.Flags()
	fl.StringVar(&pod.Task, "task", "", "file with the task")
	fl.StringVar(&pod.Secrets, "secrets", "", "folder of the mounted Secrets")
	fl.StringVar(&pod.State, "state", "", "folder for what the next Pod goes on from")
	fl.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the API server (default: the cluster in which it runs)")
	fl.BoolVar(&d.verbose, "verbose", false, "log requests and library messages too")
	return cmd
}
