package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

const results = `{"scenario":"cold","transport":"mTLS","nodes":8,"rate":"200mbit","ratio":1.15,"commit":"abc","machine":"2 CPUs <x>"}
{"scenario":"cold","transport":"none","nodes":8,"rate":"200mbit","ratio":1.1}
{"name":"a ring","nodes":8,"ratio":4.25}
`

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(strings.NewReader(results), &out); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(out.String())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("no XML: %v\n%s", err, out.String())
		}
	}
	for _, want := range []string{"cold, 8 nodes at 200mbit<", ", plain text", "without Shoal: a ring, 8 nodes", ">4.25<", "2 CPUs &lt;x&gt;, commit abc"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestBadInput(t *testing.T) {
	for in, want := range map[string]string{"": "no results", "{": "line 1", `{"scenario":"cold"}`: "no ratio"} {
		if err := run(strings.NewReader(in), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}
