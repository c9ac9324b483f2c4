package acr

import "regexp"

// Host is a host name of ACR.
type Host struct {
	// Instance is the instance's name where it is an enterprise one, Personal the id (crpi-...) where it is a personal one
	// with a name of its own. Without either it is the name that older personal instances share.
	Instance, Personal string
	// Region is such as cn-hangzhou.
	Region string
	// Network is "" for the internet, "vpc", or "internal", which only the shared names have.
	Network string
	// International is set for the shared names that begin with registry-intl.
	International bool
}

var (
	enterpriseHost = regexp.MustCompile(`^([a-z0-9]+(?:-[a-z0-9]+)*)-registry(?:-(vpc))?\.([a-z0-9-]+)\.cr\.aliyuncs\.com$`)
	personalHost   = regexp.MustCompile(`^(crpi-[a-z0-9]+)(?:-(vpc))?\.([a-z0-9-]+)\.personal\.cr\.aliyuncs\.com$`)
	sharedHost     = regexp.MustCompile(`^registry(-intl)?(?:-(vpc|internal))?\.([a-z0-9-]+)\.aliyuncs\.com$`)
)

// ParseHost reads a host name without a port. ok is false for one that is not ACR's.
func ParseHost(name string) (h Host, ok bool) {
	if m := enterpriseHost.FindStringSubmatch(name); m != nil {
		return Host{Instance: m[1], Network: m[2], Region: m[3]}, true
	}
	if m := personalHost.FindStringSubmatch(name); m != nil {
		return Host{Personal: m[1], Network: m[2], Region: m[3]}, true
	}
	if m := sharedHost.FindStringSubmatch(name); m != nil {
		return Host{International: m[1] != "", Network: m[2], Region: m[3]}, true
	}
	return Host{}, false
}

// String builds the host name.
func (h Host) String() string {
	network := ""
	if h.Network != "" {
		network = "-" + h.Network
	}
	switch {
	case h.Instance != "":
		return h.Instance + "-registry" + network + "." + h.Region + ".cr.aliyuncs.com"
	case h.Personal != "":
		return h.Personal + network + "." + h.Region + ".personal.cr.aliyuncs.com"
	case h.International:
		return "registry-intl" + network + "." + h.Region + ".aliyuncs.com"
	}
	return "registry" + network + "." + h.Region + ".aliyuncs.com"
}
