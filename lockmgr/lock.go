package lockmgr

import "strings"

// Mode says what a lock does: whether it is checked when its transaction is
// certified, and whether it is recorded when that commits.
type Mode uint8

// The modes.
const (
	Read   Mode = iota // checked, not recorded
	Write              // checked and recorded
	Append             // recorded, not checked
)

// String returns "read", "write" or "append".
func (m Mode) String() string {
	switch m {
	case Read:
		return "read"
	case Write:
		return "write"
	case Append:
		return "append"
	}
	return "unknown"
}

func (m Mode) checked() bool  { return m != Append }
func (m Mode) recorded() bool { return m != Read }

// Lock is one lock of a transaction.
//
// Name is a point (`account.42`) or a subtree, all names strictly below a
// prefix (`account.>`) or all names (`>`). Two locks overlap when they are
// equal or one's subtree holds the other; `a.>` and `a` do not. Tokens may have
// up to 255 bytes here, which is more than the grammar allows; a longer one
// panics.
type Lock struct {
	Mode Mode
	Name string
}

// wildcard is the last token of a subtree's name.
const wildcard = ">"

// cut splits the first token off a name. last reports whether it was the only
// one.
func cut(name string) (token, rest string, last bool) {
	if i := strings.IndexByte(name, '.'); i >= 0 {
		return name[:i], name[i+1:], false
	}
	return name, "", true
}
