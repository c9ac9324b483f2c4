package controller

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/registry"
)

// packReport is what a packing in a Job says of itself.
type packReport struct {
	// Attempt is the one that the Job is for: what another one said is of no interest any more.
	Attempt string `json:"attempt"`
	// Revision is the source's, as soon as it is known.
	Revision    string `json:"revision,omitempty"`
	DoneBytes   int64  `json:"doneBytes"`
	ReusedBytes int64  `json:"reusedBytes"`
	TotalBytes  int64  `json:"totalBytes"`
	// Digest and ImageBytes are the image's, when it is whole.
	Digest     string `json:"digest,omitempty"`
	ImageBytes int64  `json:"imageBytes,omitempty"`
	// Fault is why the packing has ended without an image.
	Fault *packFault `json:"fault,omitempty"`
}

// packFault is an error on its way from a Job to the hub.
type packFault struct {
	Class   faultClass `json:"class"`
	Message string     `json:"message"`
}

// faultClass says whose fault an error is: plan and status go by it.
type faultClass string

const (
	faultSource         faultClass = "source"
	faultSourceSecret   faultClass = "source-secret"
	faultRegistry       faultClass = "registry"
	faultRegistrySecret faultClass = "registry-secret"
	faultOther          faultClass = "other"
)

// maxFault bounds the message of a fault, in bytes, as conditions do.
const maxFault = 16 << 10

func faultOf(err error) *packFault {
	f := &packFault{Class: faultOther, Message: err.Error()}
	if len(f.Message) > maxFault {
		f.Message = f.Message[:maxFault]
	}
	_, source := errors.AsType[*sourceError](err)
	_, secret := errors.AsType[*secretError](err)
	_, told := errors.AsType[*registry.Error](err)
	switch {
	case source && secret:
		f.Class = faultSourceSecret
	case source:
		f.Class = faultSource
	case secret:
		f.Class = faultRegistrySecret
	case told:
		f.Class = faultRegistry
	}
	return f
}

// err is the error again, as far as plan and status look at it.
func (f *packFault) err() error {
	told := errors.New(f.Message)
	switch f.Class {
	case faultSource:
		return &sourceError{told}
	case faultSourceSecret:
		return &sourceError{&secretError{told}}
	case faultRegistrySecret:
		return &secretError{told}
	case faultRegistry:
		return &toldError{f.Message, &registry.Error{Err: told}}
	}
	return told
}

// toldError is an error of a registry as another process has put it.
type toldError struct {
	message string
	err     *registry.Error
}

// Error implements error.
func (e *toldError) Error() string { return e.message }

// Unwrap returns the registry's error.
func (e *toldError) Unwrap() error { return e.err }

// parseReport reads a report of an attempt. Without one, or with that of another attempt, ok is false.
func parseReport(raw, attempt string) (r packReport, ok bool, err error) {
	if raw == "" {
		return packReport{}, false, nil
	}
	if err := json.Unmarshal([]byte(raw), &r); err != nil {
		return packReport{}, false, fmt.Errorf("the report of the packing: %w", err)
	}
	if r.Attempt != attempt {
		return packReport{}, false, nil
	}
	if r.DoneBytes < 0 || r.ReusedBytes < 0 || r.TotalBytes < 0 || r.ImageBytes < 0 {
		return packReport{}, false, errors.New("the report of the packing: less than no bytes")
	}
	if r.Digest != "" {
		if err := digest.Digest(r.Digest).Validate(); err != nil {
			return packReport{}, false, fmt.Errorf("the report of the packing: digest %q: %w", r.Digest, err)
		}
	}
	return r, true, nil
}

func (r packReport) progress() progress {
	return progress{Done: r.DoneBytes, Reused: r.ReusedBytes, Total: r.TotalBytes, Note: r.Revision}
}
