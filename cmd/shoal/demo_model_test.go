package main

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"testing"
)

// checkSafetensors reads a file as the format says: header length, header, and tensors that fill
// the rest without a gap.
func checkSafetensors(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(b)
	var header map[string]tensor
	if err := json.Unmarshal(b[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	var covered int64
	for name, x := range header {
		if x.Offsets[1]-x.Offsets[0] != 2*x.Shape[0]*x.Shape[1] {
			t.Errorf("%s: %+v", name, x)
		}
		covered += x.Offsets[1] - x.Offsets[0]
	}
	if want := int64(len(b)) - 8 - int64(n); covered != want {
		t.Errorf("%s: tensors cover %d bytes of %d", name, covered, want)
	}
}
