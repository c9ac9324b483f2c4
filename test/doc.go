// Package test holds the tests that run the real shoal program, as a user would: its processes are
// started, killed and cut off, and what they leave behind is looked at. It has tests only.
package test
