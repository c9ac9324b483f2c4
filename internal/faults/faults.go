// Package faults puts into the answers of an HTTP server what goes wrong on real networks, and counts
// the bytes that it sends. The servers that stand in for registries and object stores use it.
package faults

import (
	"net/http"
	"sync/atomic"
)

// Fault is what goes wrong with one request; the zero value is nothing.
type Fault struct {
	// Status, where it is not 0, is answered in the server's place, with Header.
	Status int
	Header http.Header
	// At is the byte of the response's body at which the following happens.
	At int64
	// Wait, if any, stops the response there until the channel is closed or the client hangs up. At
	// byte 0 the header waits too.
	Wait <-chan struct{}
	// Flip inverts the byte.
	Flip bool
	// Cut breaks the connection off before the byte.
	Cut bool
}

// Writer counts the body on its way out and brings the request's fault into it.
type Writer struct {
	http.ResponseWriter
	Request *http.Request
	Fault   Fault
	Counter *atomic.Int64
	// Status is the status of the answer, once there is one.
	Status int

	at int64
}

// Begin waits where the fault does so before the header.
func (w *Writer) Begin() { w.wait(0) }

// Unwrap lets http.ResponseController reach the connection.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *Writer) WriteHeader(status int) {
	w.Status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *Writer) Write(p []byte) (int, error) {
	done := 0
	if split := w.Fault.At - w.at; split >= 0 && split < int64(len(p)) {
		n, err := w.send(p[:split])
		if err != nil {
			return n, err
		}
		done = n
		w.wait(w.at)
		if w.Fault.Cut {
			w.breakOff()
		}
		p = p[done:]
		if w.Fault.Flip {
			p = append([]byte{^p[0]}, p[1:]...)
		}
	}
	n, err := w.send(p)
	return done + n, err
}

// send counts before it writes: a client that has the last byte finds it counted.
func (w *Writer) send(p []byte) (int, error) {
	w.Counter.Add(int64(len(p)))
	n, err := w.ResponseWriter.Write(p)
	w.Counter.Add(int64(n - len(p)))
	w.at += int64(n)
	return n, err
}

// wait stops at the fault's byte.
func (w *Writer) wait(at int64) {
	if w.Fault.Wait == nil || w.Fault.At != at {
		return
	}
	if at > 0 { // the client is to have what comes before
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
	select {
	case <-w.Fault.Wait:
	case <-w.Request.Context().Done():
		panic(http.ErrAbortHandler) // what nobody reads is not to be counted
	}
	w.Fault.Wait = nil
}

// breakOff sends what was written and closes the connection.
func (w *Writer) breakOff() {
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}
