package acr

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// ErrClosed means that the login was closed.
var ErrClosed = errors.New("the login is closed")

// Error says why there are no temporary credentials, and what to do.
type Error struct {
	// Instance and Region say for what.
	Instance, Region string
	// Status and Code are the OpenAPI's answer, RequestID what its support asks for. Status is 0 where there was none.
	Status          int
	Code, RequestID string
	// Identity is where the keys came from, empty where there were none.
	Identity string
	Err      error
}

// Error implements error.
func (e *Error) Error() string {
	text := fmt.Sprintf("ACR instance %s in %s gives no temporary credentials: %s", e.Instance, e.Region, e.advice())
	if e.Code != "" {
		text += " (" + e.Code
		if e.RequestID != "" {
			text += ", request " + e.RequestID
		}
		text += ")"
	}
	return text
}

// Unwrap returns what went wrong on the way; nil where the OpenAPI answered.
func (e *Error) Unwrap() error { return e.Err }

// Refused reports whether asking again is of no use before somebody has changed keys, rights or configuration.
func (e *Error) Refused() bool {
	return e.Code != "" && !e.transient()
}

// transient reports whether the next try may well succeed.
func (e *Error) transient() bool {
	return e.Identity != "" && (e.Status == 0 || e.Status >= 500 || e.Status == http.StatusTooManyRequests || strings.HasPrefix(e.Code, "Throttling") ||
		strings.HasPrefix(e.Code, "ServiceUnavailable") || strings.HasPrefix(e.Code, "InternalError"))
}

// advice goes by the code, because the status of one code differs from service to service. What the service says in
// its own words is left out where it quotes the request.
func (e *Error) advice() string {
	code := strings.ToLower(e.Code)
	starts := func(prefix string) bool { return strings.HasPrefix(code, prefix) }
	switch {
	case e.Identity == "":
		return fmt.Sprintf("no Alibaba Cloud keys: set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or give the pod a role (RRSA) or the ECS instance a RAM role: %v", e.Err)
	case e.Status == 0:
		return fmt.Sprintf("the OpenAPI does not answer; check the endpoint (cr-vpc.%s.aliyuncs.com inside a VPC) and the network: %v", e.Region, e.Err)
	case starts("forbidden"), starts("nopermission"), starts("notauthorized"):
		return fmt.Sprintf("the keys from %s may not do that; allow the action cr:GetAuthorizationToken in a RAM policy", e.Identity)
	case starts("invalidaccesskeyid"):
		return fmt.Sprintf("the access key from %s does not exist or is disabled; give another one", e.Identity)
	case starts("signaturedoesnotmatch"), starts("incompletesignature"):
		return fmt.Sprintf("the access key's secret from %s is wrong; set it again", e.Identity)
	case starts("invalidsecuritytoken"), starts("missingsecuritytoken"):
		return fmt.Sprintf("the security token from %s has expired or does not belong to the access key; get a new one", e.Identity)
	case starts("invalidtimestamp"), starts("signaturenonceused"):
		return "the request counts as old; set this machine's clock"
	case starts("instance_not_exist"), starts("instancenotexist"), starts("instance_not_found"):
		return "the instance is not there; check instanceId and region"
	case e.transient():
		return fmt.Sprintf("the OpenAPI fails or limits the rate (status %d); it is asked again", e.Status)
	}
	return fmt.Sprintf("the OpenAPI refuses with status %d; look the code up in the API's documentation", e.Status)
}
