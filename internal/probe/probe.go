// Package probe reads what a running program shows from outside: its metrics page and its /proc entry.
// Tests and bench use it.
package probe

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Metric returns the value of a metric on a page in Prometheus' text format, summed over its labels.
func Metric(page, name string) (float64, error) {
	var sum float64
	var found bool
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		fields := strings.Fields(line)
		v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}

// Anonymous returns a process's anonymous memory in bytes (proc_pid_status(5), RssAnon). The error is
// fs.ErrNotExist where the process has ended.
func Anonymous(pid int) (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(raw), "RssAnon:")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		return 0, fmt.Errorf("RssAnon of process %d: %w", pid, err)
	}
	return kib << 10, nil
}
