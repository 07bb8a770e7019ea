package wal_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// sized returns a batch of n transactions with about the given bytes.
func sized(first uint64, n, bytes int) []byte {
	return batch(first, n, strings.Repeat("x", max(bytes/n-60, 1)))
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{300, 300 << 10} {
		for _, writers := range []int{1, 16} {
			b.Run(fmt.Sprintf("bytes=%d/writers=%d", size, writers), func(b *testing.B) {
				s := openStore(b, b.TempDir(), wal.Options{})
				data := sized(1, max(1, size/300), size)
				const logs = 4
				var mu [logs]sync.Mutex // Raft's one writer a log
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				var all sync.WaitGroup
				b.ResetTimer()
				for w := range writers {
					all.Go(func() {
						l := s.Log(uint32(w % logs))
						for i := w; i < b.N; i += writers {
							mu[w%logs].Lock()
							err := l.Append(wal.Entry{Index: l.LastIndex() + 1, Term: 1, Data: data})
							mu[w%logs].Unlock()
							if err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
			})
		}
	}
}

// filled returns a log of n entries with the given number of transactions each,
// of which almost none is in memory.
func filled(b *testing.B, dir string, n, transactions int) *wal.Log {
	s := openStore(b, dir, wal.Options{TailBytes: 1})
	l := s.Log(0)
	var entries []wal.Entry
	for i := range uint64(n) {
		entries = append(entries, wal.Entry{
			Index: i + 1, Term: 1, Data: sized(i*uint64(transactions)+1, transactions, 300*transactions),
		})
		if len(entries)*transactions >= 10_000 || i == uint64(n)-1 {
			if err := l.Append(entries...); err != nil {
				b.Fatal(err)
			}
			entries = nil
		}
	}
	if err := s.Checkpoint(); err != nil {
		b.Fatal(err)
	}
	return l
}

func BenchmarkEntries(b *testing.B) {
	for _, transactions := range []int{1, 1_000} {
		b.Run(fmt.Sprintf("transactions=%d", transactions), func(b *testing.B) {
			n := 200_000 / transactions
			l := filled(b, b.TempDir(), n, transactions)
			b.ReportAllocs()
			b.ResetTimer()
			for read := 0; read < b.N; {
				for _, err := range l.Entries(1, uint64(n-1)) {
					if err != nil {
						b.Fatal(err)
					}
					if read += transactions; read >= b.N {
						break
					}
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
		})
	}
}

func BenchmarkFindTx(b *testing.B) {
	for _, transactions := range []int{1, 1_000} {
		b.Run(fmt.Sprintf("transactions=%d", transactions), func(b *testing.B) {
			n := 100_000 / transactions
			l := filled(b, b.TempDir(), n, transactions)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if _, err := l.FindTx(uint64(1+i*7919%(n*transactions)), uint64(n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, crashed := range []bool{false, true} {
		b.Run(fmt.Sprintf("entries=200000/crashed=%t", crashed), func(b *testing.B) {
			dir := b.TempDir()
			opts := wal.Options{CheckpointBytes: 1 << 40}
			s, _ := wal.Open(dir, opts)
			l := s.Log(0)
			for i := uint64(0); i < 200_000; i += 100 {
				var entries []wal.Entry
				for j := i + 1; j <= i+100; j++ {
					entries = append(entries, wal.Entry{Index: j, Term: 1, Data: sized(j, 1, 300)})
				}
				if err := l.Append(entries...); err != nil {
					b.Fatal(err)
				}
			}
			if crashed {
				s.WaitApplied()
				left := b.TempDir()
				copyOpen(b, s, left)
				dir = left
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				s, err := wal.Open(dir, opts)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				victim := dir
				if crashed {
					victim = b.TempDir()
					copyOpen(b, s, victim)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				dir = victim
				b.StartTimer()
			}
		})
	}
}
