package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/shoal-project/shoal"

// rule says which of our packages a room may import. In patterns, "x" is the package x itself and
// "x/..." is everything below it, without x.
type rule struct {
	room    string
	imports []string
	why     string
}

// rules are read from the top; the first whose room matches decides. A package without a row is an
// error: a new room needs a decision about what it may see.
var rules = []rule{
	{"api", []string{"internal/..."}, "api, model and internal import nothing of the components"},
	{"api/...", []string{"api", "api/...", "internal/..."}, "api, model and internal import nothing of the components"},
	{"internal/...", []string{"internal/..."}, "api, model and internal import nothing of the components"},
	{"model", []string{"internal/..."}, "api, model and internal import nothing of the components"},
	{"model/foreign", []string{"model", "internal/..."}, "foreign images are described with the checks of model"},
	{"model/source", []string{"model", "internal/..."}, "sources know the model and nothing else"},
	{"model/source/...", []string{"model", "model/source", "internal/..."}, "sources know the model and nothing else"},

	{"mirror", []string{"model", "swarm", "tracker/client", "peer/store", "internal/..."}, "the mirror sees model, swarm, the tracker's client and the store in which it keeps blobs"},
	{"mirror/...", []string{"mirror", "mirror/...", "model", "swarm", "tracker/client", "peer/store", "internal/..."}, "the mirror sees model, swarm, the tracker's client and the store in which it keeps blobs"},

	{"tracker/client", []string{"model", "internal/..."}, "the tracker's client is what others import: it must not bring the tracker along"},
	{"tracker/lease", []string{"model", "internal/..."}, "leases are a plain data structure"},
	{"tracker", []string{"tracker/...", "model", "internal/..."}, "the tracker sees model and its own parts"},
	{"swarm", []string{"model", "internal/..."}, "the swarm sees model; leases and storage come through its interfaces"},

	{"peer/store", []string{"model", "internal/..."}, "the rooms of a node see model and not each other: peer joins them"},
	{"peer/store/...", []string{"peer/store", "model", "internal/..."}, "the rooms of a node see model and not each other: peer joins them"},
	{"peer/gossip", []string{"model", "internal/..."}, "the rooms of a node see model and not each other: peer joins them"},
	{"peer/yield", []string{"model", "internal/..."}, "the rooms of a node see model and not each other: peer joins them"},
	{"peer/pagecache", []string{"model", "internal/..."}, "the rooms of a node see model and not each other: peer joins them"},
	{"peer/endpoint", []string{"model", "internal/..."}, "endpoint and csi declare interfaces for what they need of a node"},
	{"peer/csi", []string{"model", "internal/..."}, "endpoint and csi declare interfaces for what they need of a node"},
	{"peer", []string{"peer/...", "swarm", "tracker/client", "model", "model/foreign", "internal/..."}, "peer joins its rooms, the swarm and the tracker's client"},

	{"controller", []string{"controller/...", "api", "api/...", "model", "tracker/client", "internal/..."}, "the controller writes intent: it sees api, model and the tracker's client"},
	{"controller/...", []string{"controller", "controller/...", "api", "api/...", "model", "tracker/client", "internal/..."}, "the controller writes intent: it sees api, model and the tracker's client"},

	{"cmd/...", everything, "commands wire everything; nothing imports bench and test"},
	{"bench", anything, ""}, {"bench/...", anything, ""},
	{"test", anything, ""}, {"test/...", anything, ""},
}

var (
	everything = []string{
		"api", "api/...", "internal/...", "model", "model/...", "mirror", "mirror/...", "swarm",
		"tracker", "tracker/...", "peer", "peer/...", "controller", "controller/...", "cmd/...",
	}
	anything = append([]string{"bench/...", "test/..."}, everything...)
)

// libraries keeps what is large, or has traps of its own, in one room.
var libraries = []struct {
	prefix string
	rooms  []string
	why    string
}{
	{"github.com/anacrolix/", []string{"swarm"}, "only swarm speaks BitTorrent"},
	{"github.com/distribution/distribution/", []string{"mirror", "mirror/...", "internal/registryserver"}, "only the mirror and the embedded registry run a registry"},
	{"github.com/aliyun/credentials-go/", []string{"internal/acr"}, "its chain of credentials has traps that internal/acr goes round"},
	{"github.com/aliyun/aliyun-oss-go-sdk", []string{"model/source/oss"}, "only the source of OSS knows its SDK"},
	{"github.com/hashicorp/memberlist", []string{"peer/gossip"}, "only gossip knows memberlist"},
	{"k8s.io/", kubernetes, "only api, controller and cmd know Kubernetes: nodes and mirrors hold no credentials for it"},
	{"sigs.k8s.io/controller-runtime", kubernetes, "only api, controller and cmd know Kubernetes: nodes and mirrors hold no credentials for it"},
}

var kubernetes = []string{"api", "api/...", "controller", "controller/...", "cmd/..."}

// unruled are the rooms whose libraries are their own affair. internal/deps only holds modules in
// go.mod before their first use.
var unruled = []string{"bench", "bench/...", "test", "test/..."}

// judge says what is wrong with the package from (a path below the module, without it) importing
// the import path to. It returns "" where nothing is.
func judge(from, to string) string {
	if own, ok := strings.CutPrefix(to, module+"/"); ok {
		return judgeOwn(from, own)
	}
	if matches(from, unruled) {
		return ""
	}
	for _, l := range libraries {
		if strings.HasPrefix(to, l.prefix) && !matches(from, l.rooms) {
			return fmt.Sprintf("%s imports %s: %s", from, to, l.why)
		}
	}
	return ""
}

func judgeOwn(from, to string) string {
	for _, r := range rules {
		if !matches(from, []string{r.room}) {
			continue
		}
		if matches(to, r.imports) {
			return ""
		}
		return fmt.Sprintf("%s imports %s: %s (it may import %s)", from, to, r.why, strings.Join(r.imports, ", "))
	}
	return fmt.Sprintf("%s imports %s, and no rule has a row for %s: add one to the table of this test", from, to, from)
}

func matches(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if below, ok := strings.CutSuffix(pattern, "..."); ok {
			return strings.HasPrefix(path, below)
		}
		return path == pattern
	})
}

func TestImportsPointOneWay(t *testing.T) {
	const root = "../.."
	watchTree(t, root)
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps=false", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	seen := 0
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p struct {
			ImportPath string
			Imports    []string // of files that are not tests
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, to := range p.Imports {
			if wrong := judge(from, to); wrong != "" {
				t.Error(wrong)
			}
		}
	}
	if seen < 5 {
		t.Errorf("go list found only %d packages: the test looks at the wrong place", seen)
	}
}

// watchTree lists every directory of the module. `go test` reuses a result until something that
// the test itself opened has changed, and what `go list` reads is not that.
func watchTree(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == root {
			return err
		}
		if name := d.Name(); strings.HasPrefix(name, ".") || name == "bin" {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestJudge(t *testing.T) {
	const torrent, registry, members = "github.com/anacrolix/torrent", "github.com/distribution/distribution/v3/registry/handlers", "github.com/hashicorp/memberlist"
	for _, tc := range []struct {
		from, to string // to without a dot in its first element is ours
		want     string // part of the message; "" means allowed
	}{
		{"model", "internal/registry", ""},
		{"model", "model/source", "nothing of the components"},
		{"model", "swarm", "nothing of the components"},
		{"api/v1alpha1", "model", "nothing of the components"},
		{"internal/registry", "model", "nothing of the components"},
		{"internal/registryserver", "internal/certs", ""},
		{"model/source", "model", ""},
		{"model/source/oss", "mirror", "sources know the model"},
		{"mirror", "peer/store", ""},
		{"mirror", "tracker/client", ""},
		{"mirror", "tracker", "the tracker's client"},
		{"mirror", "tracker/lease", "the tracker's client"},
		{"mirror", "peer", "the tracker's client"},
		{"mirror", "model/source", "the tracker's client"},
		{"tracker", "tracker/lease", ""},
		{"tracker", "swarm", "its own parts"},
		{"tracker/client", "tracker", "must not bring the tracker along"},
		{"swarm", "tracker/client", "through its interfaces"},
		{"swarm", "peer/store", "through its interfaces"},
		{"peer/store", "peer/gossip", "not each other"},
		{"peer/endpoint", "peer/store", "declare interfaces"},
		{"peer", "peer/store", ""},
		{"peer", "mirror", "peer joins"},
		{"peer", "tracker", "peer joins"},
		{"controller", "api/v1alpha1", ""},
		{"controller", "peer", "writes intent"},
		{"cmd/shoal", "model/source", ""},
		{"cmd/shoal", "controller", ""},
		{"cmd/shoal", "bench", "nothing imports bench and test"},
		{"cmd/shoal", "test/cluster", "nothing imports bench and test"},
		{"bench", "mirror", ""},
		{"test", "bench/shape", ""},
		{"modelling", "model", "no rule has a row"},
		{"peer/gpu", "model", "no rule has a row"},

		{"swarm", torrent, ""},
		{"peer", torrent, "only swarm"},
		{"mirror", registry, ""},
		{"internal/registryserver", registry, ""},
		{"peer/endpoint", registry, "run a registry"},
		{"model/source/oss", "github.com/aliyun/aliyun-oss-go-sdk/oss", ""},
		{"cmd/shoal", "github.com/aliyun/aliyun-oss-go-sdk/oss", "knows its SDK"},
		{"peer/gossip", members, ""},
		{"tracker", members, "only gossip"},
		{"controller", "k8s.io/client-go/kubernetes", ""},
		{"cmd/shoal", "sigs.k8s.io/controller-runtime", ""},
		{"peer/csi", "k8s.io/mount-utils", "hold no credentials"},
		{"mirror", "sigs.k8s.io/controller-runtime/pkg/client", "hold no credentials"},
		{"mirror", "sigs.k8s.io/yaml", ""},
		{"test", registry, ""},
		{"model", "net/http", ""},
	} {
		to := tc.to
		if first, _, _ := strings.Cut(to, "/"); !strings.Contains(first, ".") && first != "net" {
			to = module + "/" + to
		}
		got := judge(tc.from, to)
		if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s imports %s: judged %q, want %q", tc.from, tc.to, got, tc.want)
		}
	}
}
