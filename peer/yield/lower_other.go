//go:build !linux

package yield

import "errors"

// Lower is not possible here.
func Lower() error { return errors.New("only on Linux can the priority of all threads be lowered") }
