//go:build !linux

package journal

import "os"

// dataSync calls os.File.Sync, which on Apple's systems asks for a full flush
// of the drive.
func dataSync(f *os.File) error { return f.Sync() }

func allocate(f *os.File, size int64) error { return extend(f, size) }
