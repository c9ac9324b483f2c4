package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/retry"
)

// jobs has models packed in Jobs. All that it knows is in the API server: a controller that begins finds the Jobs of
// the one before it.
type jobs struct {
	cfg    JobConfig
	access *access
	client client.Client
	// server is asked where an old answer would mislead. It is asked once in reportEvery for each packing, a few of
	// which run at once: that is no reason to hold, and be allowed to read, all ConfigMaps of the cluster.
	server client.Reader
	reach  map[string]string
}

// pack has md packed into its registry number to, by the Job that is at it or by a new one. It ends with the packing;
// when ctx ends, the Job goes on, and is ended by whoever does not want it (end).
func (j *jobs) pack(ctx context.Context, md *v1alpha1.ModelDistribution, to int, previous []string, tell func(progress)) (packed, error) {
	task := taskFor(md, to, previous, j.reach)
	if err := j.check(ctx, task); err != nil {
		return packed{}, err
	}
	job, report, err := j.look(ctx, md)
	if err != nil {
		return packed{}, err
	}
	if job == nil || job.Annotations[inputAnnotation] != task.input() || report.Fault != nil || report.Digest == "" && jobFailed(job) != nil || !job.DeletionTimestamp.IsZero() {
		if err := j.begin(ctx, md, task); err != nil {
			return packed{}, err
		}
	}
	for {
		job, report, err := j.look(ctx, md)
		switch {
		case err != nil:
			return packed{}, err
		case report.Digest != "":
			tell(report.progress())
			return packed{digest.Digest(report.Digest), report.Revision, report.ImageBytes}, nil
		case report.Fault != nil:
			tell(report.progress())
			return packed{}, report.Fault.err()
		case job == nil:
			return packed{}, fmt.Errorf("somebody has deleted the Job %s/%s", md.Namespace, packName(md))
		case jobFailed(job) != nil:
			return packed{}, jobFailed(job)
		}
		if report.TotalBytes > 0 || report.Revision != "" {
			tell(report.progress())
		}
		if err := retry.Sleep(ctx, reportEvery/2); err != nil {
			return packed{}, err
		}
	}
}

// check looks for the Secrets: without them the Pod would wait, and say so to nobody.
func (j *jobs) check(ctx context.Context, task jobTask) error {
	if name := sourceSecret(&task.Spec.ModelSource); name != "" {
		if _, err := j.access.secret(ctx, task.Namespace, name); err != nil {
			return &sourceError{err}
		}
	}
	for _, p := range places(&task.Spec) {
		if p.secret == "" {
			continue
		}
		if _, err := j.access.credentials(ctx, task.Namespace, p); err != nil {
			return err
		}
	}
	return nil
}

// look returns the Job of md, nil for none, and what it has told, the zero value for nothing.
func (j *jobs) look(ctx context.Context, md *v1alpha1.ModelDistribution) (*batchv1.Job, packReport, error) {
	var job batchv1.Job // first: what it has told before it ended is there when its end is seen
	err := j.server.Get(ctx, client.ObjectKey{Namespace: md.Namespace, Name: packName(md)}, &job)
	if apierrors.IsNotFound(err) {
		return nil, packReport{}, nil
	}
	if err != nil {
		return nil, packReport{}, err
	}
	var kept corev1.ConfigMap
	if err := j.server.Get(ctx, client.ObjectKeyFromObject(&job), &kept); err != nil {
		return &job, packReport{}, client.IgnoreNotFound(err)
	}
	report, _, err := parseReport(kept.Data[reportKey], job.Annotations[attemptAnnotation])
	return &job, report, err
}

// begin replaces what there is by a new Job, which goes on from the state that was kept.
func (j *jobs) begin(ctx context.Context, md *v1alpha1.ModelDistribution, task jobTask) error {
	if err := j.deleteJob(ctx, md); err != nil {
		return err
	}
	for _, object := range packAccount(md) {
		if err := j.client.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make the account of the packing: %w", err)
		}
	}
	task.Attempt = string(uuid.NewUUID())
	// From here on a Pod of an earlier attempt that still runs finds that it is not wanted.
	kept := &corev1.ConfigMap{ObjectMeta: packMeta(md), Data: map[string]string{attemptKey: task.Attempt}}
	err := j.client.Create(ctx, kept)
	if apierrors.IsAlreadyExists(err) {
		change := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"data":{%q:%q,%q:null}}`, attemptKey, task.Attempt, reportKey))
		err = j.client.Patch(ctx, kept, change)
	}
	if err != nil {
		return fmt.Errorf("prepare the ConfigMap of the packing: %w", err)
	}
	if err := j.client.Create(ctx, packJob(md, task, j.cfg)); err != nil {
		return fmt.Errorf("make the Job of the packing: %w", err)
	}
	return nil
}

// end ends the Job of md, if there is one. What it can go on from stays if it is to be kept.
func (j *jobs) end(ctx context.Context, md *v1alpha1.ModelDistribution, keep bool) error {
	err := j.client.Get(ctx, client.ObjectKey{Namespace: md.Namespace, Name: packName(md)}, &batchv1.Job{}) // of the cache: this is asked at each look
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !keep {
		// The Job last: while it is there, this is done again.
		for _, object := range slices.Concat(packAccount(md), []client.Object{&corev1.ConfigMap{ObjectMeta: packMeta(md)}}) {
			if err := j.client.Delete(ctx, object); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
	}
	return j.deleteJob(ctx, md)
}

func (j *jobs) deleteJob(ctx context.Context, md *v1alpha1.ModelDistribution) error {
	err := j.client.Delete(ctx, &batchv1.Job{ObjectMeta: packMeta(md)}, client.PropagationPolicy("Background"))
	return client.IgnoreNotFound(err)
}

// jobFailed is why a Job that has told no result has ended, nil where it has not.
func jobFailed(job *batchv1.Job) error {
	for _, c := range job.Status.Conditions {
		if c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue {
			return fmt.Errorf("the Job %s/%s has failed, %s: %s: look at `kubectl -n %s logs job/%s`", job.Namespace, job.Name, c.Reason, c.Message, job.Namespace, job.Name)
		}
		if c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue {
			return errors.New("the Job " + job.Namespace + "/" + job.Name + " has ended well and told nothing")
		}
	}
	return nil
}
