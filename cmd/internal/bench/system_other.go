//go:build !linux

package bench

import (
	"os/exec"
	"time"
)

func deviceOf(string) device { return device{} }

func syncAll() {}

func endWithParent(*exec.Cmd) {}

func nap(d time.Duration) { time.Sleep(d) }
