package yield

import (
	"testing"
	"time"
)

func TestLine(t *testing.T) {
	l := newLine(DefaultEvery)
	for range 1000 {
		if l.step(DefaultEvery+DefaultEvery/2) != placeLast {
			t.Fatal("steps that come a little late are no starvation")
		}
	}
	l = newLine(DefaultEvery)
	if l.step(4*DefaultEvery) != placeLast {
		t.Fatal("one late step is no starvation")
	}
	steps := 0
	for l.step(time.Second) == placeLast {
		if steps++; steps > 4 {
			t.Fatal("starves for ever")
		}
	}
	var rested time.Duration
	for l.step(time.Second) == placeNice {
		if rested += time.Second; rested > 2*lastAgain {
			t.Fatal("never last again")
		}
	}
	if rested < lastAgain-2*time.Second {
		t.Errorf("last again after %v", rested)
	}
	if l.step(DefaultEvery) != placeLast {
		t.Error("what was late before counts again")
	}
}
