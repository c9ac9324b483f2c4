package clusters

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Reason says in one word why a cluster cannot be used, or not for this. It can be a condition's reason.
type Reason string

const (
	// Unknown: no cluster has this name.
	Unknown Reason = "ClusterUnknown"
	// Invalid: its Secret cannot be used as it is.
	Invalid Reason = "ClusterInvalid"
	// Connecting: it has not yet answered; that is heard of.
	Connecting Reason = "ClusterConnecting"
	// Unreachable: it does not answer, or not as an API server does. It is tried again.
	Unreachable Reason = "ClusterUnreachable"
	// Denied: it refuses the credentials, or does not give them the rights.
	Denied Reason = "ClusterDenied"
	// NotInstalled: Shoal is not installed there.
	NotInstalled Reason = "ShoalNotInstalled"
	// Foreign: an object of this name belongs to somebody else.
	Foreign Reason = "ObjectForeign"
)

// Error is what is wrong with a cluster, or with an object in it.
type Error struct {
	Cluster string
	Reason  Reason
	Message string // one sentence, with the cluster's name and what to do

	cause error
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.cause }

// ReasonOf returns the reason of an error of this package, "" of any other.
func ReasonOf(err error) Reason {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func problem(cluster string, reason Reason, format string, args ...any) *Error {
	return &Error{Cluster: cluster, Reason: reason, Message: "cluster " + cluster + ": " + fmt.Sprintf(format, args...)}
}

// unanswered says what an error means that is no answer of an API server.
func (m *member) unanswered(err error) *Error {
	var e *Error
	var invalid x509.CertificateInvalidError
	var checked *tls.CertificateVerificationError
	switch {
	case errors.As(err, new(x509.UnknownAuthorityError)):
		e = problem(m.Name, Unreachable, "the certificate of %s is not signed by the CA in %s: put the cluster's CA there", m.host, m.source)
	case errors.As(err, new(x509.HostnameError)):
		e = problem(m.Name, Unreachable, "the certificate of %s is for other names (%v): give one of them as the server's name in %s", m.host, err, m.source)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e = problem(m.Name, Unreachable, "the certificate of %s has expired, or a clock is wrong: renew it", m.host)
	case errors.As(err, &checked):
		e = problem(m.Name, Unreachable, "the certificate of %s cannot be trusted (%v): put the cluster's CA into %s", m.host, checked.Err, m.source)
	default:
		e = problem(m.Name, Unreachable, "%s does not answer (%v): see that the cluster runs and that the hub reaches it", m.host, err)
	}
	e.cause = err
	return e
}

// refused says what a status of an API server means to the watch; nil where it means that all is well.
func (m *member) refused(status int) *Error {
	switch {
	case status < http.StatusBadRequest, status == http.StatusGone, status == http.StatusTooManyRequests:
		return nil // the watch begins anew, or is to wait: an API server that lives
	case status == http.StatusUnauthorized:
		return problem(m.Name, Denied, "%s does not know the credentials in %s, or they have expired: put new ones there", m.host, m.source)
	case status == http.StatusForbidden:
		return problem(m.Name, Denied, "the credentials in %s may not watch ModelReplicas: %s", m.source, giveRights)
	case status == http.StatusNotFound:
		return problem(m.Name, NotInstalled, "it has no ModelReplicas: install Shoal there, at least by kubectl apply --server-side -f charts/shoal/crds")
	}
	return problem(m.Name, Unreachable, "%s answers %d %s: see what holds its API server back", m.host, status, http.StatusText(status))
}

const giveRights = "give them those of examples/member.yaml (docs/members.md)"

// failed says what the error of a request means, which was to do what.
func (m *member) failed(what string, err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return fmt.Errorf("cluster %s: %s: %w", m.Name, what, err)
	}
	var e *Error
	switch {
	case apierrors.IsUnauthorized(err):
		e = m.refused(http.StatusUnauthorized)
	case apierrors.IsForbidden(err):
		e = problem(m.Name, Denied, "%s: %v: %s", what, err, giveRights)
	case apierrors.IsNotFound(err):
		e = problem(m.Name, NotInstalled, "%s: %v: install Shoal there (docs/members.md)", what, err)
	default:
		return fmt.Errorf("cluster %s: %s: %w", m.Name, what, err)
	}
	e.cause = err
	return e
}
