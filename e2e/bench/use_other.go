//go:build !linux

package main

import "os/exec"

func endWithParent(*exec.Cmd) {}

func written(string) (bytes int64, ok bool) { return 0, false }
