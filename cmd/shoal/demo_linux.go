package main

import (
	"os/exec"
	"syscall"
)

// endWithParent makes the child die with the demo, also when the demo is killed.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
