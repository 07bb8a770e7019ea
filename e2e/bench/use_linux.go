package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// endWithParent has a member killed when this program is killed.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// written returns the bytes that the device of a directory has written since
// the machine started, after a sync of everything.
func written(dir string) (bytes int64, ok bool) {
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		return 0, false
	}
	unix.Sync()
	stats, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return 0, false
	}
	major, minor := strconv.Itoa(int(unix.Major(stat.Dev))), strconv.Itoa(int(unix.Minor(stat.Dev)))
	for line := range strings.Lines(string(stats)) {
		// The tenth field counts sectors of 512 bytes.
		if f := strings.Fields(line); len(f) > 9 && f[0] == major && f[1] == minor {
			n, err := strconv.ParseInt(f[9], 10, 64)
			return n * 512, err == nil
		}
	}
	return 0, false
}
