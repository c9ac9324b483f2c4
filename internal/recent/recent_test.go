package recent_test

import (
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/recent"
)

func TestMap(t *testing.T) {
	m := recent.New[string, int](time.Minute, 2)
	now := time.Unix(1000, 0)
	m.Put("a", 1, now)
	for name, c := range map[string]struct {
		key          string
		at           time.Time
		value        int
		known, fresh bool
	}{
		"fresh":     {"a", now.Add(59 * time.Second), 1, true, true},
		"stale":     {"a", now.Add(time.Minute), 1, true, false},
		"never put": {"b", now, 0, false, false},
	} {
		if value, known, fresh := m.Get(c.key, c.at); value != c.value || known != c.known || fresh != c.fresh {
			t.Errorf("%s: %d, %t, %t", name, value, known, fresh)
		}
	}
	m.Delete("a")
	if _, known, _ := m.Get("a", now); known {
		t.Error("a deleted key is known")
	}
}

// There are never more than it was told; what is not fresh goes first.
func TestMapIsBounded(t *testing.T) {
	m := recent.New[int, struct{}](time.Minute, 3)
	now := time.Unix(1000, 0)
	m.Put(0, struct{}{}, now.Add(-time.Hour))
	for i := range 100 {
		m.Put(i, struct{}{}, now)
		count := 0
		for k := range 100 {
			if _, known, _ := m.Get(k, now); known {
				count++
			}
		}
		if _, known, _ := m.Get(i, now); count > 3 || !known {
			t.Fatalf("after %d: %d are known, the last one: %t", i, count, known)
		}
	}
	m.Put(1000, struct{}{}, now)
	m.Put(1001, struct{}{}, now.Add(time.Hour))
	if _, known, _ := m.Get(1000, now); known {
		t.Error("a stale one stayed though there was no room")
	}
}
