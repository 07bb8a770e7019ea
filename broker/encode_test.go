package broker

import (
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestABusyRefusalIsLikeAnyOther(t *testing.T) {
	t.Parallel()
	mark := uint64(1_234_567)
	e := busyError(17)
	want := appendRefusal(nil, "_INBOX.x", e, subjects.Reply{Partition: 17, Error: e, HighWaterMark: &mark})
	r := newBusyReply(17)
	for range 2 {
		if got := r.append(nil, "_INBOX.x", mark); string(got) != string(want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
