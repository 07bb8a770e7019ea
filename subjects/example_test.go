package subjects_test

import (
	"encoding/json"
	"fmt"

	"github.com/cantuslog/cantus/subjects"
)

func ExampleNames() {
	var names subjects.Names
	fmt.Println(names.Append(0))
	fmt.Println(names.Feed(0, ">"))
	fmt.Println(subjects.Names{Prefix: "bank.log"}.Cursor(3, "billing"))
	// Output:
	// cantus.append.0
	// cantus.feed.0.>
	// bank.log.cursor.3.billing
}

func ExampleOverlap() {
	fmt.Println(subjects.Overlap("account.>", "account.42"))
	fmt.Println(subjects.Overlap("account.>", "account"))
	fmt.Println(subjects.Overlap("account.>", ">"))
	// Output:
	// true
	// false
	// true
}

func ExampleCheckLock() {
	fmt.Println(subjects.CheckLock("account.42"))
	fmt.Println(subjects.CheckLock("account.*.limit"))
	// Output:
	// <nil>
	// bad_request (400): lock "account.*.limit", token 2: '*' is a wildcard: only a last token may be ">", and no other wildcard is allowed
}

func ExampleScanBlock() {
	block := subjects.AppendBlockStart(nil)
	block = subjects.AppendField(block, subjects.HeaderWriteLock, "account.42")
	block = subjects.AppendField(block, subjects.HeaderHighWaterMark, "812")
	block = subjects.AppendBlockEnd(block)
	err := subjects.ScanBlock(block, func(key, value []byte) error {
		fmt.Printf("%s = %s\n", key, value)
		return nil
	})
	fmt.Println(err)
	// Output:
	// Cantus-Write-Lock = account.42
	// Cantus-High-Water-Mark = 812
	// <nil>
}

func ExampleReply() {
	var r subjects.Reply
	answer := `{"partition":0,"error":{"code":409,"reason":"conflict","message":"…","lock":"account.42","txid":812},"high_water_mark":815}`
	if err := json.Unmarshal([]byte(answer), &r); err != nil {
		fmt.Println(err)
	}
	if r.Error != nil && r.Error.Reason == subjects.Conflict {
		fmt.Println("apply up to", r.Error.Txid, "and send again")
	}
	// Output:
	// apply up to 812 and send again
}
