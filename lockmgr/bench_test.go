package lockmgr_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/cantuslog/cantus/lockmgr"
)

const million = 1_000_000

// shapes are ways to name a million things.
var shapes = []struct {
	name string
	of   func(i int) string
}{
	{"account.N", func(i int) string { return fmt.Sprintf("account.%d", i) }},
	{"bank.N.balance", func(i int) string { return fmt.Sprintf("bank.%d.balance", i) }},
	{"bank.uuid.balance", func(i int) string {
		r := rand.New(rand.NewPCG(uint64(i), 0))
		return fmt.Sprintf("bank.%016x%016x.balance", r.Uint64(), r.Uint64())
	}},
}

func millionNames(of func(int) string) []string {
	names := make([]string, million)
	for i := range names {
		names[i] = of(i)
	}
	return names
}

// warm returns a Manager that knows all names.
func warm(names []string) *lockmgr.Manager {
	m := lockmgr.New(lockmgr.Options{})
	tx := lockmgr.Transaction{Locks: make([]lockmgr.Lock, 1)}
	for i, name := range names {
		tx.Locks[0] = lockmgr.Lock{Mode: lockmgr.Write, Name: name}
		m.Record(uint64(i)+1, int64(i), &tx)
	}
	return m
}

// BenchmarkCertifyRecord certifies a transaction with one write lock of a
// million known names and records it, with many in flight at a time.
func BenchmarkCertifyRecord(b *testing.B) {
	for _, shape := range shapes {
		names := millionNames(shape.of)
		for _, inFlight := range []int{1, 1000} {
			m := warm(names)
			b.Run(fmt.Sprintf("%s/inflight=%d", shape.name, inFlight), func(b *testing.B) {
				certifyRecord(b, m, inFlight, func(i int) string { return names[uint64(i)*7919%million] }, false)
			})
		}
	}
}

// BenchmarkCertifyRecordNew gives each transaction a name that is not known, so
// that each forgets another, and a message id.
func BenchmarkCertifyRecordNew(b *testing.B) {
	m := warm(millionNames(shapes[0].of))
	fresh := make([]string, 2*million+1) // a name comes again only when forgotten
	for i := range fresh {
		fresh[i] = fmt.Sprintf("fresh.%d", i)
	}
	b.Run("inflight=1000", func(b *testing.B) {
		certifyRecord(b, m, 1000, func(i int) string { return fresh[i%len(fresh)] }, true)
	})
}

func certifyRecord(b *testing.B, m *lockmgr.Manager, inFlight int, name func(int) string, ids bool) {
	txs := make([]lockmgr.Transaction, inFlight)
	for i := range txs {
		txs[i].Locks = make([]lockmgr.Lock, 1)
	}
	b.ReportAllocs()
	b.ResetTimer()
	base := int(m.Committed())
	for i := range b.N {
		now := int64(base + i)
		if i >= inFlight {
			m.Commit()
		}
		tx := &txs[i%inFlight]
		tx.Locks[0] = lockmgr.Lock{Mode: lockmgr.Write, Name: name(base + i)}
		tx.HighWaterMark, tx.HasHighWaterMark = m.Last(), true
		if ids {
			tx.ID = lockmgr.ID{byte(base + i), byte((base + i) >> 8), byte((base + i) >> 16), byte((base + i) >> 24)}
		}
		if v := m.Certify(tx, now); v.Outcome != lockmgr.Pass {
			b.Fatalf("%+v: %+v", *tx, v)
		}
	}
	m.Rollback(0)
}

// BenchmarkCertifyRefuse refuses a transaction with three locks, one violated.
func BenchmarkCertifyRefuse(b *testing.B) {
	names := millionNames(shapes[0].of)
	m := warm(names)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		n := 2 + int(uint64(i)*7919%(million-2))
		v := m.Certify(&lockmgr.Transaction{
			Locks: []lockmgr.Lock{
				{Mode: lockmgr.Write, Name: names[n]},
				{Mode: lockmgr.Write, Name: names[n-1]},
				{Mode: lockmgr.Read, Name: names[n-2]},
			},
			HighWaterMark: uint64(n), HasHighWaterMark: true,
		}, million)
		if len(v.Conflicts) != 1 {
			b.Fatalf("%+v", v)
		}
	}
}

// BenchmarkNewestSubtree looks up the subtree of a prefix.
func BenchmarkNewestSubtree(b *testing.B) {
	m := warm(millionNames(shapes[1].of))
	for _, name := range []string{">", "bank.>", "bank.482913.>", "bank.482913.balance"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				m.Newest(name)
			}
		})
	}
}

// BenchmarkRecordOlder walks a log of a million names backwards.
func BenchmarkRecordOlder(b *testing.B) {
	names := millionNames(shapes[0].of)
	m := lockmgr.New(lockmgr.Options{})
	m.Reset(uint64(b.N), int64(b.N))
	tx := lockmgr.Transaction{Locks: make([]lockmgr.Lock, 1)}
	b.ReportAllocs()
	b.ResetTimer()
	for i := b.N; i > 0; i-- {
		tx.Locks[0] = lockmgr.Lock{Mode: lockmgr.Write, Name: names[uint64(i)*7919%million]}
		m.RecordOlder(uint64(i), int64(i), &tx)
	}
}

// BenchmarkRollback rolls back one of a thousand transactions in flight.
func BenchmarkRollback(b *testing.B) {
	names := millionNames(shapes[0].of)
	m := lockmgr.New(lockmgr.Options{})
	tx := lockmgr.Transaction{Locks: make([]lockmgr.Lock, 1)}
	for i := range b.N {
		for m.Last() < 1000 {
			tx.Locks[0] = lockmgr.Lock{Mode: lockmgr.Append, Name: names[(i+int(m.Last())*7919)%million]}
			m.Certify(&tx, 0)
		}
		m.Rollback(1000)
	}
}

// BenchmarkMemory reports the heap that each of a million tracked names, or
// ids, takes.
func BenchmarkMemory(b *testing.B) {
	for _, shape := range shapes {
		b.Run(shape.name, func(b *testing.B) {
			names := millionNames(shape.of)
			for range b.N {
				before := heap()
				m := warm(names)
				b.ReportMetric(float64(heap()-before)/million, "B/name")
				runtime.KeepAlive(m)
			}
			runtime.KeepAlive(names)
		})
	}
	b.Run("ids", func(b *testing.B) {
		for range b.N {
			before := heap()
			m := lockmgr.New(lockmgr.Options{})
			for i := range million {
				m.Record(uint64(i)+1, 0, &lockmgr.Transaction{ID: lockmgr.ID{byte(i), byte(i >> 8), byte(i >> 16)}})
			}
			b.ReportMetric(float64(heap()-before)/million, "B/id")
			runtime.KeepAlive(m)
		}
	})
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
