// Package controller turns what users declare into what clusters hold.
//
// The hub's part reads a ModelDistribution and everything that it is about, decides by a pure function what is to be
// done (plan.go), starts it, and writes down how far it is (status.go). What takes long, packing and copying, runs
// as an effort (effort.go) beside the reconciler, which only looks how far it is: all that must outlast the process
// is in the registries and in the object's status, so that a controller that was killed begins with the same
// questions and finds what it had sent.
//
// A packing runs here, or in a Job of its own (job.go is how that looks, jobhub.go the hub's side of it, jobpod.go the
// Pod's): the code that packs is the same (pack.go). A Job tells how far it is in one ConfigMap, where it also keeps
// what its next Pod goes on from.
package controller
