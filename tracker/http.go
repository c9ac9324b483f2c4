package tracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/shoal-project/shoal/internal/certs"
)

// refusal is an error that the caller is told: a status and what to do.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

// caller is who sent a request. The zero value may do everything: nobody is asked for an identity.
type caller struct {
	id    certs.Identity
	known bool
}

// mirrorName is the name under which a mirror speaks, alone or before a slash and a name of its
// own. Node names have no slash (certs.ParseIdentity), so the two cannot meet.
const mirrorName = "mirror"

// mayBe refuses a caller that speaks for somebody else.
func (c caller) mayBe(name string) error {
	if !c.known {
		return nil
	}
	mirrors := name == mirrorName || strings.HasPrefix(name, mirrorName+"/")
	switch c.id.Role {
	case certs.Node:
		if name == c.id.Name && !mirrors {
			return nil
		}
		if mirrors {
			return refuse(http.StatusForbidden, "the name %q is a mirror's: give the node another one", name)
		}
	case certs.Mirror:
		if mirrors {
			return nil
		}
	}
	return refuse(http.StatusForbidden, "certificate of %s may not speak for %q: use the certificate issued for that name", c.id, name)
}

// handle makes an http.Handler of fn, which is called for callers of the given roles only; none
// means any.
func (s *Server) handle(fn func(http.ResponseWriter, *http.Request, caller) error, roles ...certs.Role) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := s.identify(r, roles)
		if err == nil {
			err = fn(w, r, who)
		}
		if err == nil {
			return
		}
		no, told := errors.AsType[*refusal](err)
		if !told {
			// The answer could not be written: its reader is gone.
			s.log.DebugContext(r.Context(), "answer not sent", "path", r.URL.Path, "err", err)
			return
		}
		s.metrics.refused.WithLabelValues(strconv.Itoa(no.status)).Inc()
		s.log.DebugContext(r.Context(), "request refused", "path", r.URL.Path, keyPeer, r.RemoteAddr, "status", no.status, "err", no)
		if err := writeJSON(w, no.status, map[string]string{"error": no.text}); err != nil {
			s.log.DebugContext(r.Context(), "answer not sent", "path", r.URL.Path, "err", err)
		}
	})
}

func (s *Server) identify(r *http.Request, roles []certs.Role) (caller, error) {
	if s.cfg.Identify == nil {
		return caller{}, nil
	}
	id, ok := s.cfg.Identify(r)
	if !ok {
		return caller{}, refuse(http.StatusUnauthorized, "no Shoal certificate: connect with one made by `shoal certs issue`")
	}
	if len(roles) > 0 && !slices.Contains(roles, id.Role) {
		return caller{}, refuse(http.StatusForbidden, "certificate of %s may not do this: it needs a role of %v", id, roles)
	}
	return caller{id: id, known: true}, nil
}

// bodyTime is how long a body may take, so that slow senders do not pile up.
const bodyTime = 20 * time.Second

func limitBodyTime(w http.ResponseWriter) error {
	err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	if errors.Is(err, http.ErrNotSupported) { // by the recorders of tests
		return nil
	}
	return err
}

// decode reads one JSON value of at most limit bytes.
func decode(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	if err := limitBodyTime(w); err != nil {
		return err
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	err := d.Decode(into)
	if err == nil {
		if _, end := d.Token(); !errors.Is(end, io.EOF) {
			return tooLong(end, refuse(http.StatusBadRequest, "body goes on after its JSON value: send one value"))
		}
		return nil
	}
	return tooLong(err, refuse(http.StatusBadRequest, "body is not the JSON that is wanted here: %v", err))
}

// tooLong returns a refusal of its own for bodies beyond the limit, else no.
func tooLong(err, no error) error {
	if long, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(http.StatusRequestEntityTooLarge, "body is longer than %d bytes: send less", long.Limit)
	}
	return no
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeBody(w, status, "application/json", body)
}

func writeBody(w http.ResponseWriter, status int, kind string, body []byte) error {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, err := w.Write(body)
	return err
}

// Limits of texts: DNS names have 253 characters at most, labels of nodes 63.
const (
	maxName  = 253
	maxLabel = 128
)

// checkText refuses texts that are too long for a label, or would spoil a log or a terminal.
func checkText(what, s string, longest int) error {
	if len(s) > longest {
		return refuse(http.StatusBadRequest, "%s has %d bytes: send at most %d", what, len(s), longest)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return refuse(http.StatusBadRequest, "%s %q has characters that do not print: leave them out", what, s)
	}
	return nil
}

// checkName is checkText for names that must be there.
func checkName(what, s string) error {
	if s == "" {
		return refuse(http.StatusBadRequest, "%s is missing", what)
	}
	return checkText(what, s, maxName)
}
