// Package controller turns what users declare into what clusters hold.
//
// The hub's part reads a ModelDistribution and everything that it is about, decides by a pure function what is to be
// done (plan.go), starts it, and writes down how far it is (status.go). What takes long, packing and copying, runs
// as an effort (effort.go) beside the reconciler, which only looks how far it is: all that must outlast the process
// is in the registries and in the object's status, so that a controller that was killed begins with the same
// questions and finds what it had sent.
package controller
