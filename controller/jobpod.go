package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/shoal-project/shoal/internal/retry"
)

// PodConfig is what a packing in a Job works with.
type PodConfig struct {
	// Task is the file with the task.
	Task string
	// Secrets is a folder with one of each Secret's name, whose files are its keys.
	Secrets string
	// State is a folder for what the packing goes on from; it may be empty.
	State string
	// Sources opens sources, which are reached as the task's hub reaches them.
	Sources func(reach map[string]string) OpenSource
	// ConfigMaps are those of a namespace.
	ConfigMaps typedcorev1.ConfigMapsGetter
	// Log may be nil.
	Log *slog.Logger
}

// tellEvery is how often a Pod writes report and state: up to a MiB for etcd each time. What it has sent since then a
// next Pod reads again, and does not send.
const tellEvery = 5 * time.Second

// RunPod packs as the Job's task says, and tells in the task's ConfigMap how far it is and how it ends. What the next
// one goes on from is kept there too, as it was a short while ago. The error is what was told as well, unless that was
// not possible or ctx has ended.
func RunPod(ctx context.Context, cfg PodConfig) error {
	raw, err := os.ReadFile(cfg.Task)
	if err != nil {
		return fmt.Errorf("the task: %w", err)
	}
	var task jobTask
	if err := json.Unmarshal(raw, &task); err != nil {
		return fmt.Errorf("the task: %w", err)
	}
	to := places(&task.Spec)
	if len(to) != 1 {
		return fmt.Errorf("the task names %d registries, not one", len(to))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	told := &teller{maps: cfg.ConfigMaps.ConfigMaps(task.Namespace), task: task, state: cfg.State, report: packReport{Attempt: task.Attempt}}
	if err := told.begin(ctx); err != nil {
		return err
	}
	p := &packer{&access{secret: secretsIn(cfg.Secrets), reach: task.Reach}, cfg.Sources(task.Reach), cfg.Log}
	defer p.access.close()

	work, stop := context.WithCancelCause(ctx)
	var telling sync.WaitGroup
	telling.Go(func() {
		for retry.Sleep(work, tellEvery) == nil {
			err := told.write(work)
			if errors.Is(err, errSuperseded) {
				stop(err)
			}
			if err != nil && work.Err() == nil {
				cfg.Log.Warn("how far the packing is could not be told", "err", err)
			}
		}
	})
	result, err := p.pack(work, packTask{task.Namespace, &task.Spec.ModelSource, to[0], task.Previous, cfg.State}, told.progress)
	if cause := context.Cause(work); err != nil && cause != nil {
		err = cause
	}
	stop(nil)
	telling.Wait()
	if errors.Is(err, errSuperseded) {
		return err
	}
	told.end(result, err, ctx.Err() != nil)
	// A Pod that is asked to end has a while for its last words.
	return errors.Join(err, told.lastWrite(context.WithoutCancel(ctx)))
}

// errSuperseded means that the packing is another Job's by now.
var errSuperseded = errors.New("another attempt has taken this packing over, or it is not wanted any more")

// teller writes the report and the state into the ConfigMap.
type teller struct {
	maps  typedcorev1.ConfigMapInterface
	task  jobTask
	state string
	last  *corev1.ConfigMap // as it was read or written last

	mu     sync.Mutex
	report packReport
}

// begin fills the state folder from the ConfigMap.
func (t *teller) begin(ctx context.Context) error {
	if err := t.read(ctx); err != nil {
		return err
	}
	return writeState(t.state, t.last.BinaryData)
}

// read reads the ConfigMap. The error is errSuperseded where it is not for this attempt.
func (t *teller) read(ctx context.Context) error {
	last, err := t.maps.Get(ctx, t.task.ConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return errSuperseded
	case err != nil:
		return fmt.Errorf("read the ConfigMap %s: %w", t.task.ConfigMap, err)
	case last.Data[attemptKey] != t.task.Attempt:
		return errSuperseded
	}
	t.last = last
	return nil
}

func (t *teller) progress(p progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.DoneBytes, t.report.ReusedBytes, t.report.TotalBytes = p.Done, p.Reused, p.Total
	if p.Note != "" {
		t.report.Revision = p.Note
	}
}

// end says how the packing has ended; one that was asked to end says nothing.
func (t *teller) end(result packed, err error, asked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.report.Digest, t.report.Revision, t.report.ImageBytes = result.digest.String(), result.revision, result.bytes
	case !asked:
		t.report.Fault = faultOf(err)
	}
}

// write writes report and state. Where the ConfigMap has changed meanwhile, it is read and written again.
func (t *teller) write(ctx context.Context) error {
	t.mu.Lock()
	raw, err := json.Marshal(t.report)
	t.mu.Unlock()
	if err != nil {
		return err
	}
	state, err := readState(t.state, stateLimit)
	if err != nil {
		return err
	}
	for {
		next := t.last.DeepCopy()
		next.Data, next.BinaryData = map[string]string{attemptKey: t.task.Attempt, reportKey: string(raw)}, state
		written, err := t.maps.Update(ctx, next, metav1.UpdateOptions{})
		switch {
		case err == nil:
			t.last = written
			return nil
		case apierrors.IsNotFound(err):
			return errSuperseded
		case !apierrors.IsConflict(err):
			return fmt.Errorf("write the ConfigMap %s: %w", t.task.ConfigMap, err)
		}
		if err := t.read(ctx); err != nil {
			return err
		}
	}
}

// lastWrite writes as soon as the API server answers.
func (t *teller) lastWrite(ctx context.Context) error {
	patience := retry.Policy{Tries: 8, Base: 500 * time.Millisecond, Max: 5 * time.Second}
	for try := 0; ; try++ {
		err := t.write(ctx)
		if err == nil || errors.Is(err, errSuperseded) || try == patience.Tries {
			return err
		}
		if err := retry.Sleep(ctx, patience.Pause(try)); err != nil {
			return err
		}
	}
}

// secretsIn reads the Secrets that are mounted in a folder.
func secretsIn(dir string) secretReader {
	return func(_ context.Context, namespace, name string) (map[string][]byte, error) {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &secretError{fmt.Errorf("the Secret %s of namespace %s is not mounted", name, namespace)}
		}
		data := map[string][]byte{}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") { // the kubelet's own, by which it changes all keys at once
				continue
			}
			content, readErr := os.ReadFile(filepath.Join(dir, name, e.Name()))
			err = errors.Join(err, readErr)
			data[e.Name()] = content
		}
		if err != nil {
			return nil, fmt.Errorf("read the Secret %s: %w", name, err)
		}
		return data, nil
	}
}
