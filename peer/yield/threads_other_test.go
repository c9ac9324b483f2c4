//go:build !linux

package yield

func beLowered() bool { return false }
