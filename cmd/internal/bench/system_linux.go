package bench

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

func deviceOf(dir string) device {
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		return device{}
	}
	return device{major: unix.Major(stat.Dev), minor: unix.Minor(stat.Dev), known: true}
}

func syncAll() { unix.Sync() }

// endWithParent has a server killed if bench is: a round that was killed
// leaves nothing behind that uses the machine.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
