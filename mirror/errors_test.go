package mirror

import (
	"errors"
	"fmt"
	"testing"
)

// noLogin is the error of a source of credentials.
type noLogin struct{ refused bool }

func (noLogin) Error() string   { return "no credentials: do this" }
func (e noLogin) Refused() bool { return e.refused }

// Where there are no credentials, the advice is their source's, and whether it is worth to ask again too.
func TestBlameLogin(t *testing.T) {
	for refused, down := range map[bool]bool{true: false, false: true} {
		err := blame(Source{"reg.example.com", "a/b"}, fmt.Errorf("GET https://x: %w", noLogin{refused}))
		var told *UpstreamError
		if !errors.As(err, &told) || told.down() != down {
			t.Errorf("refused %v: %#v", refused, err)
		}
		if got, want := err.Error(), "upstream registry reg.example.com, repository a/b: no credentials: do this"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
