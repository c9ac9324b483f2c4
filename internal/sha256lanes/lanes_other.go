//go:build !amd64

package sha256lanes

const wide = false

func compress(*state, *[lanes]*byte, int) { panic("sha256lanes: not on this processor") }
