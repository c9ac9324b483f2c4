package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// worded returns an API server's error in words for the people at a prompt: what was wrong field by field, and
// what to do where the server does not say. Other errors stay as they are.
func worded(err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		if unreached, ok := errors.AsType[*url.Error](err); ok && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("the cluster cannot be reached, is --context the right one? %w", unreached.Err)
		}
		return err
	}
	s := status.Status()
	var causes []metav1.StatusCause
	if s.Details != nil {
		causes = s.Details.Causes
	}
	switch {
	case s.Reason == metav1.StatusReasonNotFound && isUnknownKind(err):
		return errors.New("the cluster does not know ModelDistributions: install charts/shoal/crds with kubectl apply --server-side, or choose another cluster with --context")
	case s.Reason == metav1.StatusReasonInvalid && len(causes) > 0:
		return fmt.Errorf("refused:%s", causeLines(causes))
	case s.Reason == metav1.StatusReasonConflict && len(causes) > 0:
		return fmt.Errorf("others have set the same fields to other values (--force-conflicts takes them over):%s", causeLines(causes))
	}
	if found, ok := strings.CutPrefix(s.Message, patchPrefix); ok {
		if _, found, ok = strings.Cut(found, "): "); ok {
			return fmt.Errorf("refused:%s", schemaLines(found))
		}
	}
	return errors.New(s.Message)
}

// patchPrefix begins what an API server answers to fields that a server-side apply cannot have; it gives no causes.
const patchPrefix = "failed to create typed patch object ("

// schemaValue is how sigs.k8s.io/structured-merge-diff prints a value.
var schemaValue = regexp.MustCompile(`&?value\.valueUnstructured\{Value:(.*)\}`)

// schemaLines puts each error of sigs.k8s.io/structured-merge-diff on an indented line of its own.
func schemaLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimPrefix(s, "errors:")) {
		line = schemaValue.ReplaceAllString(oneLine(line), "$1")
		line = strings.ReplaceAll(line, "field not declared in schema", "there is no such field")
		if line = strings.TrimPrefix(line, "."); line != "" {
			b.WriteString("\n  " + line)
		}
	}
	return b.String()
}

// isNoObject reports whether err is that of an API server that knows ModelDistributions, but not this one.
func isNoObject(err error) bool { return apierrors.IsNotFound(err) && !isUnknownKind(err) }

// isUnknownKind reports whether err is that of an API server that does not know ModelDistributions.
func isUnknownKind(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Details != nil && slices.ContainsFunc(status.Status().Details.Causes, unknownKind)
}

// unknownKind reports whether the API server has no such path, rather than no such object.
func unknownKind(c metav1.StatusCause) bool {
	return c.Type == metav1.CauseTypeUnexpectedServerResponse
}

// causeLines puts each cause on an indented line of its own, behind its field and value.
func causeLines(causes []metav1.StatusCause) string {
	var b strings.Builder
	seen := map[string]bool{}
	for _, c := range causes {
		line := c.Message
		if c.Type == metav1.CauseTypeFieldValueInvalid {
			value, message := splitInvalid(c.Message)
			line = message
			if value != "" {
				line = value + ": " + message
			}
		}
		if field := strings.TrimPrefix(c.Field, "."); field != "" && field != "<nil>" {
			line = field + ": " + line
		}
		if !seen[line] { // a schema's union repeats what each of its parts finds
			seen[line] = true
			b.WriteString("\n  " + oneLine(line))
		}
	}
	return b.String()
}

// maxValue is how long a value may be that an error repeats: a name, not a description.
const maxValue = 64

// splitInvalid takes apart what field.Invalid of k8s.io/apimachinery wrote: Invalid value: VALUE: MESSAGE, or, for
// an object, without its value. The value is empty where repeating it helps nobody: a whole object, a placeholder
// for one, or a long text.
func splitInvalid(s string) (value, message string) {
	rest, ok := strings.CutPrefix(s, "Invalid value: ")
	if !ok {
		return "", s
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		var raw json.RawMessage
		if json.NewDecoder(strings.NewReader(rest)).Decode(&raw) != nil {
			return "", rest
		}
		quoted = string(raw)
	}
	message, ok = strings.CutPrefix(rest[len(quoted):], ": ")
	if !ok {
		return "", rest
	}
	if len(quoted) > maxValue || strings.ContainsAny(quoted[:1], "{[") || quoted == `"object"` || quoted == "null" {
		return "", message
	}
	return quoted, message
}
