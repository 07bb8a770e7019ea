package bench

import (
	"os/exec"
	"syscall"
	"time"

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

// endWithParent has a server killed when bench is killed, so that it does not
// go on using the machine.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// nap blocks the thread for d, give or take 50 µs.
func nap(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil) // a signal may end it early; the caller checks the time
}
