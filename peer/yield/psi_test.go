package yield

import (
	"strings"
	"testing"
	"time"
)

const pressureFile = `some avg10=0.12 avg60=0.05 avg300=0.01 total=1234567
full avg10=0.00 avg60=0.00 avg300=0.00 total=99
`

func TestParseTotal(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		err  string
	}{
		{in: pressureFile, want: 1234567 * time.Microsecond},
		{in: "full total=7\nsome total=8", want: 8 * time.Microsecond},
		{in: "some total=0 later=1\n"},
		{in: "", err: `no line "some"`},
		{in: "full total=7\n", err: `no line "some"`},
		{in: "some avg10=0.12\n", err: "no total"},
		{in: "some total=-1\n", err: "no time"},
		{in: "some total=9223372036854775807\n", err: "no time"},
		{in: "some total=many\n", err: "no time"},
	} {
		got, err := parseTotal([]byte(c.in))
		if c.err == "" && (err != nil || got != c.want) {
			t.Errorf("parseTotal(%q) = %v, %v; want %v", c.in, got, err, c.want)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("parseTotal(%q): error %v; want one with %q", c.in, err, c.err)
		}
	}
}

func TestParseRunDelay(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		bad  bool
	}{
		{in: "123456 789 10\n", want: 789},
		{in: "1 2\n", bad: true},
		{in: "1 2 3 4\n", bad: true},
		{in: "1 -2 3\n", bad: true},
		{in: "1 x 3\n", bad: true},
		{in: "", bad: true},
	} {
		if got, err := parseRunDelay([]byte(c.in)); got != c.want || (err != nil) != c.bad {
			t.Errorf("parseRunDelay(%q) = %v, %v; want %v, an error: %t", c.in, got, err, c.want, c.bad)
		}
	}
}

func FuzzPressure(f *testing.F) {
	f.Add([]byte(pressureFile))
	f.Add([]byte("some total=1"))
	f.Add([]byte("some avg10= total=\x00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseTotal(b); d < 0 || err != nil && d != 0 {
			t.Errorf("%v, %v", d, err)
		}
	})
}

func FuzzSchedstat(f *testing.F) {
	f.Add([]byte("123456 789 10\n"))
	f.Add([]byte("0 9223372036854775808 0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseRunDelay(b); d < 0 || err != nil && d != 0 {
			t.Errorf("%v, %v", d, err)
		}
	})
}
