package model

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of a member's path in bytes. A longer one could not be created below a node's own folders
// (PATH_MAX is 4096, NAME_MAX 255).
const (
	maxPath      = 1024
	maxComponent = 255
)

// PathError says why a path cannot be a member of a model image.
type PathError struct {
	Path   string
	Reason string
}

// Error implements error.
func (e *PathError) Error() string { return fmt.Sprintf("path %q: %s", e.Path, e.Reason) }

// CheckPath reports whether p may name a file of a model: relative, slash separated, inside the
// tree, valid UTF-8 without control characters or backslashes, and free of OCI whiteout names
// (".wh.", image-spec layer.md), which would delete files where the image is mounted. The error is
// a *PathError.
func CheckPath(p string) error {
	reject := func(reason string) error { return &PathError{Path: p, Reason: reason} }
	switch {
	case p == "":
		return reject("is empty")
	case len(p) > maxPath:
		return reject(fmt.Sprintf("is longer than %d bytes", maxPath))
	case !utf8.ValidString(p):
		return reject("is not valid UTF-8")
	case p[0] == '/':
		return reject("is absolute")
	}
	for _, r := range p {
		if r < 0x20 || r == 0x7f || r == '\\' {
			return reject("contains a control character or a backslash")
		}
	}
	for component := range strings.SplitSeq(p, "/") {
		switch {
		case component == "" || component == ".":
			return reject("is not in its shortest form")
		case component == "..":
			return reject("leaves the tree")
		case len(component) > maxComponent:
			return reject(fmt.Sprintf("has a name longer than %d bytes", maxComponent))
		case strings.HasPrefix(component, ".wh."):
			return reject("is an OCI whiteout name")
		}
	}
	return nil
}

// CheckPaths checks each path and that they can stand together in one tree on any file system: no
// duplicates, no two names that differ only by case, no file that is also a directory. The error is
// a *PathError.
func CheckPaths(paths []string) error {
	const file, dir = 1, 2
	type entry struct {
		name string
		kind int
	}
	seen := make(map[string]entry, len(paths))
	for _, p := range paths {
		if err := CheckPath(p); err != nil {
			return err
		}
		for end := 1; end <= len(p); end++ {
			kind := dir
			if end == len(p) {
				kind = file
			} else if p[end] != '/' {
				continue
			}
			name := p[:end]
			key := foldCase(name)
			old, ok := seen[key]
			switch {
			case !ok:
				seen[key] = entry{name, kind}
			case old.name != name:
				return &PathError{p, fmt.Sprintf("differs from %q only by case", old.name)}
			case old.kind != kind:
				return &PathError{p, fmt.Sprintf("%q is both a file and a directory", name)}
			case kind == file:
				return &PathError{p, "appears twice"}
			}
		}
	}
	return nil
}

// foldCase goes through upper case first, so that letters with several lower forms (the Greek
// sigmas, the Kelvin sign) fold together.
func foldCase(s string) string { return strings.ToLower(strings.ToUpper(s)) }
