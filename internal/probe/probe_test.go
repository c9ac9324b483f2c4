package probe

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"
)

func TestMetric(t *testing.T) {
	const page = "# HELP bytes_total Bytes.\nbytes_total{from=\"a b\"} 1.5e3\nbytes_total{from=\"c\"} 2\nbytes_total_more 9\nup 1\nbad x\nup"
	for name, want := range map[string]float64{"bytes_total": 1502, "up": 1, "bytes": -1, "bad": -1, "": -1} {
		got, err := Metric(page, name)
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("%q: %v, %v, want %v", name, got, err, want)
		}
	}
}

func TestAnonymous(t *testing.T) {
	before, err := Anonymous(os.Getpid())
	if err != nil || before <= 0 {
		t.Fatalf("%d, %v", before, err)
	}
	b := make([]byte, 32<<20)
	for i := range b {
		b[i] = 1
	}
	after, err := Anonymous(os.Getpid())
	if err != nil || after-before < 16<<20 {
		t.Errorf("%d after %d MiB more, %v", after-before, len(b)>>20, err)
	}
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Anonymous(cmd.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an ended process: %v", err)
	}
}
