package lockmgr_test

import (
	"fmt"

	"github.com/cantuslog/cantus/lockmgr"
)

// Two writers transfer money at the same high-water mark. Their accounts
// overlap, so one of them has to compute its transaction again.
func Example() {
	m := lockmgr.New(lockmgr.Options{})
	transfer := func(from, to string, mark uint64) *lockmgr.Transaction {
		return &lockmgr.Transaction{
			Locks: []lockmgr.Lock{
				{Mode: lockmgr.Write, Name: from},
				{Mode: lockmgr.Write, Name: to},
				{Mode: lockmgr.Read, Name: "limits.>"},
			},
			HighWaterMark:    mark,
			HasHighWaterMark: true,
		}
	}

	first := transfer("account.1", "account.2", 0)
	second := transfer("account.2", "account.3", 0)
	fmt.Println(m.Certify(first, 1).Outcome)

	v := m.Certify(second, 2)
	fmt.Println(v.Outcome, v.Conflicts[0].Name, "with", v.Conflicts[0].Txid, "once", v.DependsOn, "is committed")

	fmt.Println(m.Commit(), "is committed") // the log says so
	second.HighWaterMark = 1
	fmt.Println(m.Certify(second, 3).Outcome)
	// Output:
	// pass
	// conflict account.2 with 1 once 1 is committed
	// 1 is committed
	// pass
}

// A new process reads the log's tail backwards.
func ExampleManager_RecordOlder() {
	log := []*lockmgr.Transaction{
		{Locks: []lockmgr.Lock{{Mode: lockmgr.Write, Name: "account.1"}}},
		{Locks: []lockmgr.Lock{{Mode: lockmgr.Append, Name: "account.2"}}},
	}

	m := lockmgr.New(lockmgr.Options{})
	m.Reset(2, 200)
	for txid := uint64(2); txid >= 1; txid-- {
		if !m.RecordOlder(txid, int64(txid)*100, log[txid-1]) {
			break
		}
	}
	m.Rebuilt(1)

	fmt.Println(m.Newest("account.1"))
	fmt.Println(m.Newest("account.>"))
	fmt.Println(m.Newest("account.3"))
	// Output:
	// 1 true
	// 2 true
	// 0 false
}
