//go:build !linux

package wal

import "os"

// dropCached is only for speed, and needs a system call that not all have.
func dropCached(*os.File, int64, int64) {}
