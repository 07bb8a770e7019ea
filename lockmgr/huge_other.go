//go:build !linux

package lockmgr

func advise([]byte) {}
