package subjects

import (
	"strconv"
	"strings"
)

// sessionOwner is how the owner of a cursor begins that belongs to a session.
// Names of owners that were given before transactions moved cursors don't, so
// that no session has their cursors by accident.
const sessionOwner = "session:"

// SessionOwner returns the owner of a cursor that belongs to a session:
// transactions of the session, and they alone, may move it by [HeaderCursor].
func SessionOwner(session string) string { return sessionOwner + session }

// IsSessionOwner reports whether an owner is a session.
func IsSessionOwner(owner string) bool { return strings.HasPrefix(owner, sessionOwner) }

// CheckOwner returns nil if name can be the owner of a cursor: a name as in
// [CheckCursor], or a session as in [SessionOwner].
func CheckOwner(name string) error {
	if session, is := strings.CutPrefix(name, sessionOwner); is {
		return CheckSession(session)
	}
	return CheckCursor(name)
}

// Move is a cursor that moves with a transaction.
type Move struct {
	Cursor string
	Txid   uint64
}

// ParseMove parses the value of [HeaderCursor]: the name of a cursor, an equals
// sign, and a txid in decimal digits, as in billing=812. The name is a
// substring of value, and may have equals signs itself.
func ParseMove(value string) (m Move, err error) {
	at := strings.LastIndexByte(value, '=')
	if at < 0 {
		return m, badf("%s %q: give a cursor and the txid it moves to, such as billing=812", HeaderCursor, clip(value))
	}
	m.Cursor = value[:at]
	if err := checkToken(m.Cursor); err != nil {
		return m, badf("%s: cursor %q: %v", HeaderCursor, clip(m.Cursor), err)
	}
	digits := value[at+1:]
	if strings.Trim(digits, "0123456789") == "" {
		m.Txid, err = strconv.ParseUint(digits, 10, 64)
	}
	if err != nil || m.Txid == 0 {
		return m, badf("%s %q: the position is a txid from 1 on, in decimal digits", HeaderCursor, clip(value))
	}
	return m, nil
}

// String returns the move as [ParseMove] takes it.
func (m Move) String() string { return m.Cursor + "=" + strconv.FormatUint(m.Txid, 10) }
