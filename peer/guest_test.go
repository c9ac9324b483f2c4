package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// layer pushes size bytes to the registry, as a layer of nothing.
func (r *region) layer(size int, seed uint64) (digest.Digest, []byte) {
	r.t.Helper()
	content := make([]byte, size)
	storetest.Fill(content, seed)
	d := digest.FromBytes(content)
	repos, _, err := r.origins().open(r.reference("any"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer repos[0].Close()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(size)}
	if err := repos[0].Push(r.t.Context(), desc, bytes.NewReader(content)); err != nil {
		r.t.Fatal(err)
	}
	return d, content
}

const guestRepository = "models/test"

// readBlob reads length bytes at off.
func readBlob(ctx context.Context, n *node, d digest.Digest, off, length int64) ([]byte, string, error) {
	blob, source, err := n.OpenBlob(ctx, n.region.host(), guestRepository, d)
	if err != nil {
		return nil, source, err
	}
	defer blob.Close()
	var out bytes.Buffer
	err = blob.CopyRange(ctx, &out, off, length)
	return out.Bytes(), source, err
}

func TestGuestIsOneTransferForAllReaders(t *testing.T) {
	r := newRegion(t)
	n := r.newNode()
	const size = 9<<20 + 5
	d, content := r.layer(size, 1)
	var readers sync.WaitGroup
	for i := range int64(40) {
		readers.Go(func() {
			off := i * size / 40
			end := (i + 1) * size / 40
			got, source, err := readBlob(t.Context(), n, d, off, end-off)
			if err != nil || source != FromSwarm || !bytes.Equal(got, content[off:end]) {
				t.Errorf("reader %d: %d bytes from %s, %v", i, len(got), source, err)
			}
		})
	}
	readers.Wait()
	if sent := r.upstream.Sent(d); sent != size {
		t.Errorf("the registry sent %d bytes of %d", sent, size)
	}
	until(t, func() string { // it is whole, and read from the disk now
		_, source, err := readBlob(t.Context(), n, d, 0, 1)
		if err != nil || source != FromStore {
			return "source " + source
		}
		return ""
	})
}

// expireAll sends all guests away, as time would.
func (n *node) expireAll() {
	n.guests.mu.Lock()
	var all []*guest
	for _, b := range n.guests.open {
		all = append(all, b)
	}
	n.guests.mu.Unlock()
	for _, b := range all {
		n.guests.settle(b)
	}
}

func TestGuestLeaves(t *testing.T) {
	r := newRegion(t)
	n := r.newNode()
	d, content := r.layer(5<<20, 2)
	if got, _, err := readBlob(t.Context(), n, d, 0, 5<<20); err != nil || !bytes.Equal(got, content) {
		t.Fatal(err)
	}
	n.expireAll()
	until(t, func() string {
		if got := len(n.store.Blobs()); got > 0 {
			return "the blob is still on the disk"
		}
		return ""
	})
	// It comes again for who asks again.
	if got, _, err := readBlob(t.Context(), n, d, 0, 5<<20); err != nil || !bytes.Equal(got, content) {
		t.Error(err)
	}
}

// What containerd has committed is on the disk once: ours becomes a link.
func TestGuestBecomesALink(t *testing.T) {
	r := newRegion(t)
	content := t.TempDir()
	n := r.newNode(func(c *Config) { c.ContentStore = content })
	d, blob := r.layer(5<<20, 8)
	if _, _, err := readBlob(t.Context(), n, d, 0, 5<<20); err != nil {
		t.Fatal(err)
	}
	until(t, func() string {
		whole, err := n.store.OpenVerified(t.Context(), d)
		if err != nil {
			return err.Error()
		}
		if err := whole.Close(); err != nil {
			t.Fatal(err)
		}
		return ""
	})
	theirs := filepath.Join(content, "blobs", "sha256", d.Encoded())
	writeFiles(t, content, map[string][]byte{"blobs/sha256/" + d.Encoded(): blob})
	n.expireAll()
	until(t, func() string {
		if info, err := os.Stat(theirs); err != nil || info.Sys().(*syscall.Stat_t).Nlink != 2 {
			return "the node's copy is no link to containerd's"
		}
		return ""
	})
	if got, source, err := readBlob(t.Context(), n, d, 0, 5<<20); err != nil || !bytes.Equal(got, blob) || source != FromStore {
		t.Errorf("read from %s, %v", source, err)
	}

	// When containerd drops its own, ours is not wanted either.
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	until(t, func() string {
		n.expireAll()
		if got := len(n.store.Blobs()); got > 0 {
			return "the blob is still on the disk"
		}
		return ""
	})
}

// A reader keeps the blob, however long ago others left.
func TestGuestWithAReaderStays(t *testing.T) {
	r := newRegion(t)
	n := r.newNode()
	d, content := r.layer(1<<20, 3)
	blob, _, err := n.OpenBlob(t.Context(), r.host(), guestRepository, d)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	n.expireAll()
	var out bytes.Buffer
	if err := blob.CopyRange(t.Context(), &out, 0, blob.Size()); err != nil || !bytes.Equal(out.Bytes(), content) {
		t.Error(err)
	}
}

// Another repository is no way to a blob, though the node holds it.
func TestGuestOfAnotherRepository(t *testing.T) {
	r := newRegion(t)
	n := r.newNode()
	d, _ := r.layer(1<<20, 4)
	if _, _, err := readBlob(t.Context(), n, d, 0, 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.OpenBlob(t.Context(), r.host(), "models/other", d); err == nil || !strings.Contains(err.Error(), "404") && !strings.Contains(err.Error(), "not found") {
		t.Errorf("error %v", err)
	}
}

// What does not come says why, and comes when asked for again.
func TestGuestThatDoesNotCome(t *testing.T) {
	r := newRegion(t)
	n := r.newNode()
	d, content := r.layer(1<<20, 5)
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: http.StatusForbidden} })
	if _, _, err := readBlob(t.Context(), n, d, 0, 1); err == nil {
		t.Error("a blob that the registry refuses was read")
	}
	r.setFault(nil)
	if got, _, err := readBlob(t.Context(), n, d, 0, 1<<20); err != nil || !bytes.Equal(got, content) {
		t.Error(err)
	}
}

// A reader that goes away harms nobody, and one that waits when the node ends is told so.
func TestGuestReadersEnd(t *testing.T) {
	r := newRegion(t)
	n := r.newNode()
	d, _ := r.layer(5<<20, 6)
	gate := make(chan struct{})
	r.setFault(func(req *http.Request) registryserver.Fault {
		if blobOf(req) == d.String() && req.Method == http.MethodGet {
			return registryserver.Fault{Wait: gate}
		}
		return registryserver.Fault{}
	})
	short, cancel := context.WithCancel(t.Context())
	blob, _, err := n.OpenBlob(t.Context(), r.host(), guestRepository, d)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := blob.Wait(short, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader that went away: %v", err)
	}
	waits := make(chan error, 1)
	go func() { waits <- blob.CopyRange(t.Context(), io.Discard, 0, 10) }()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		n.stop()
	}()
	if err := <-waits; !errors.Is(err, errEnding) {
		t.Errorf("when the node ended: %v", err)
	}
	close(gate)
	blob.Close()
	<-stopped
}
