package journal_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/wal/journal"
)

// BenchmarkCommit measures commits on the real file system, into segments that
// have been written before. device/payload is how much the device of dir
// (CANTUS_BENCH_DEVICE, such as vda) wrote per byte of values.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{300, 300 << 10} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%dB/%d", size, callers), func(b *testing.B) { benchCommit(b, size, callers) })
		}
	}
}

func benchCommit(b *testing.B, size, callers int) {
	j := mustOpen(b, b.TempDir(), journal.Options{SegmentSize: 16 << 20}, nil)
	defer mustClose(b, j)
	for range 80 { // until what comes is recycled
		if err := j.Commit(put("k", 1<<20)); err != nil {
			b.Fatal(err)
		}
		if err := j.Release(j.Seq()); err != nil {
			b.Fatal(err)
		}
	}
	before := deviceBytes()
	b.ResetTimer()
	var wg sync.WaitGroup
	for g := range callers {
		wg.Go(func() {
			for i := g; i < b.N; i += callers {
				if err := j.Commit(put("k", size)); err != nil {
					b.Error(err)
					return
				}
				if size > 4096 && i%256 == 0 {
					if err := j.Release(j.Seq()); err != nil {
						b.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.SetBytes(int64(size))
	if after := deviceBytes(); after > 0 {
		b.ReportMetric(float64(after-before)/float64(b.N*size), "device/payload")
	}
}

// BenchmarkBareSync is the floor: a loop of pwrite and fdatasync over a file
// written before.
func BenchmarkBareSync(b *testing.B) {
	for _, size := range []int{344, 300 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			const length = 16 << 20
			f, err := journal.OSFS.OpenFile(filepath.Join(b.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, length), 0); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			buf, off, before := make([]byte, size), int64(0), deviceBytes()
			b.SetBytes(int64(size))
			for b.Loop() {
				if off+int64(size) > length {
					off = 0
				}
				if _, err := f.WriteAt(buf, off); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				off += int64(size)
			}
			if after := deviceBytes(); after > 0 {
				b.ReportMetric(float64(after-before)/float64(b.N*size), "device/payload")
			}
		})
	}
}

// deviceBytes returns how much the device has written since the machine was
// started; 0 if that is not known.
func deviceBytes() int64 {
	stats, _ := os.ReadFile("/proc/diskstats")
	for line := range strings.Lines(string(stats)) {
		f := strings.Fields(line)
		if len(f) > 9 && f[2] == os.Getenv("CANTUS_BENCH_DEVICE") {
			var sectors int64
			_, _ = fmt.Sscan(f[9], &sectors)
			return sectors * 512
		}
	}
	return 0
}
