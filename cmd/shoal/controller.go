package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/controller"
	"github.com/shoal-project/shoal/controller/clusters"
	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/internal/retry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
	"github.com/shoal-project/shoal/model/source/oss"
	"github.com/shoal-project/shoal/tracker/client"
)

type controllerFlags struct {
	daemon
	hub             bool
	tracker         string
	dir, kubeconfig string
	namespace       string
	cluster, region string
	leaderElect     bool
	reach           []string
	packs, copies   int
	recheck         time.Duration
	packer          packerFlags
}

func controllerCommand() *cobra.Command {
	f := controllerFlags{daemon: daemon{name: "controller"}}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the control plane: from a ModelDistribution to registries and clusters",
		Long: `Run the control plane: the hub's part, the member's, or both, as in a single cluster. It talks to the API
server of --kubeconfig, else of the cluster in which it runs.

The hub packs the models that ModelDistributions describe, brings the images to their registries, and gives
every chosen cluster a ModelReplica. A member, which --tracker makes it, gives Pods the volumes of its
ModelReplicas, tells the region's tracker which nodes should hold them, and writes down which do.`,
		Example: `  shoal controller --dir /var/lib/shoal --tracker https://tracker:7070 --certs /etc/shoal/certs
  shoal controller --hub=false --tracker https://tracker:7070 --certs /etc/shoal/certs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd.Context(), &f) },
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.hub, "hub", true, "serve ModelDistributions: this is the hub")
	fl.StringVar(&f.tracker, "tracker", "", "address of the region's tracker, https://HOST:PORT: serve ModelReplicas, this is a member")
	fl.StringVar(&f.certs, "certs", "", "folder with ca.crt, tls.crt and tls.key of the role controller (shoal certs issue), for the tracker")
	fl.BoolVar(&f.plaintext, "plaintext", false, "speak without TLS to the tracker: for trials only")
	cmd.MarkFlagsMutuallyExclusive("certs", "plaintext")
	fl.StringVar(&f.dir, "dir", "", "folder for what a killed packing goes on from")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the hub's API server (default: the cluster in which it runs)")
	fl.StringVar(&f.namespace, "namespace", "shoal-system", "namespace in which the controller runs: of its lease, and of the Secrets that name clusters")
	fl.StringVar(&f.cluster, "cluster-name", "hub", "name of the hub as one of the clusters that get models; empty: it gets none")
	fl.StringVar(&f.region, "region", "", "region of the hub: it pulls from the registry of that region")
	fl.BoolVar(&f.leaderElect, "leader-elect", false, "wait until no other controller leads: for more than one replica")
	fl.StringArrayVar(&f.reach, "reach", nil, reachHelp)
	fl.IntVar(&f.packs, "packs", 0, "models that are packed at once (0: 2, or 16 with --packer=job)")
	fl.IntVar(&f.copies, "copies", 8, "copies from registry to registry at once")
	fl.DurationVar(&f.recheck, "recheck", 10*time.Minute, "how often registries that have an image are asked again")
	f.packer.register(fl)
	f.registerBasics(cmd)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return f.setup(cmd) }
	return cmd
}

func runController(ctx context.Context, f *controllerFlags) error {
	switch {
	case !f.hub && f.tracker == "":
		return errors.New("nothing to do: --hub=false makes it no hub, and without --tracker it is no member")
	case f.hub && f.dir == "":
		return errors.New("--dir is needed: a hub keeps there what a killed packing goes on from")
	}
	reach, err := parseReach(f.reach)
	if err != nil {
		return err
	}
	jobs, err := f.packer.jobs()
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", f.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1 // the server's priority and fairness holds us back where it must; client-go's own 5 a second would always
	ctrl.SetLogger(logr.FromSlogHandler(f.log.Handler()))
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), shoalv1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, // its metrics are among ours
		Cache:          packCache(),
		LeaderElection: f.leaderElect, LeaderElectionID: "shoal-hub", LeaderElectionNamespace: f.namespace, LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return err
	}
	if f.hub {
		inventory, err := f.inventory(ctx, mgr)
		if err != nil {
			return err
		}
		err = controller.AddHub(mgr, controller.HubConfig{ //nolint:contextcheck // it runs as long as the manager
			Clusters: inventory, Sources: openSource(reach), Reach: reach, Jobs: jobs, StateDir: filepath.Join(f.dir, "packs"),
			Packs: f.packs, Copies: f.copies, Recheck: f.recheck, Log: f.log,
		})
		if err != nil {
			return err
		}
	}
	if f.tracker != "" {
		if err := f.identity(); err != nil {
			return err
		}
		region, err := client.New(client.Config{URL: f.tracker, TLS: f.client(certs.Tracker)})
		if err != nil {
			return err
		}
		defer region.Close()
		if err := controller.AddMember(mgr, controller.MemberConfig{Tracker: region, Log: f.log}); err != nil {
			return err
		}
	}
	f.gather = metrics.Registry // the manager's, those of the Go runtime and the process included
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.serveAdmin(ctx, nil) })
	group.Go(func() error { return mgr.Start(ctx) })
	return group.Wait()
}

// inventory makes the clusters known, which run with the manager.
func (f *controllerFlags) inventory(ctx context.Context, mgr ctrl.Manager) (*clusters.Inventory, error) {
	var system corev1.Namespace // its UID is the cluster's identity
	if err := mgr.GetAPIReader().Get(ctx, types.NamespacedName{Name: metav1.NamespaceSystem}, &system); err != nil {
		return nil, fmt.Errorf("ask the hub's API server for its identity: %w", err)
	}
	cfg := clusters.Config{REST: mgr.GetConfig(), ID: string(system.UID), Namespace: f.namespace, MemberNamespace: f.namespace, Log: f.log}
	if f.cluster != "" {
		cfg.Hub = &clusters.Cluster{Name: f.cluster, Region: f.region}
	}
	inventory, err := clusters.New(cfg)
	if err != nil {
		return nil, err
	}
	return inventory, mgr.Add(manager.RunnableFunc(inventory.Run))
}

const reachHelp = "HOST[:PORT]=http(s)://HOST[:PORT]: where a registry, OSS or ACR's OpenAPI is reached instead; may be given again"

// parseReach reads the values of --reach.
func parseReach(args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, arg := range args {
		host, at, _ := strings.Cut(arg, "=")
		u, err := url.Parse(at)
		if host == "" || err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
			return nil, fmt.Errorf("--reach %q: want HOST[:PORT]=http(s)://HOST[:PORT]", arg)
		}
		out[host] = u.Scheme + "://" + u.Host
	}
	return out, nil
}

// openSource opens the sources that this build can read.
func openSource(reach map[string]string) controller.OpenSource {
	return func(ctx context.Context, s *v1alpha1.ModelSource, secret func(context.Context) (map[string][]byte, error)) (model.Source, error) {
		if s.OSS == nil {
			return nil, errors.New("this version of Shoal reads models from OSS and from registries: use spec.modelSource.oss or spec.modelSource.registry")
		}
		return openOSS(ctx, s, secret, reach)
	}
}

func openOSS(ctx context.Context, s *v1alpha1.ModelSource, secret func(context.Context) (map[string][]byte, error), reach map[string]string) (model.Source, error) {
	endpoint, insecure := string(s.OSS.Endpoint), strings.HasPrefix(string(s.OSS.Endpoint), "http://")
	if endpoint == "" {
		endpoint = "oss-" + string(s.OSS.Region) + ".aliyuncs.com"
	}
	if at := reach[endpoint]; at != "" {
		endpoint, insecure = at, true
	}
	var find func() (oss.Credentials, error) // none: as anybody may
	if s.OSS.Secret != "" {
		find = func() (oss.Credentials, error) {
			data, err := secret(ctx)
			if err != nil {
				return oss.Credentials{}, err
			}
			found, err := oss.FromSecret(data)
			if err != nil {
				err = fmt.Errorf("the Secret %s: %w", s.OSS.Secret, err)
			}
			return found, err
		}
	}
	files := source.Globs{}
	for _, g := range s.Include {
		files.Include = append(files.Include, string(g))
	}
	for _, g := range s.Exclude {
		files.Exclude = append(files.Exclude, string(g))
	}
	return oss.New(oss.Config{
		Endpoint: endpoint, Region: string(s.OSS.Region), Bucket: string(s.OSS.Bucket), Path: string(s.OSS.Path),
		Files: files, Credentials: find, Insecure: insecure, Retry: retry.Policy{Tries: 5, Base: 500 * time.Millisecond, Max: 5 * time.Second},
	})
}
