package natslink

import (
	"bytes"
)

// ControlLineMargin is the maximum number of bytes that the first line of a
// reply has besides its subject.
const ControlLineMargin = 32

// limits are the server's limits for the commands of a connection. The server
// closes a connection that exceeds them, and so ends all its subscriptions.
type limits struct {
	payload int // bytes of a message, headers included; 0 if it is not known yet
	control int // bytes of a command's first line
}

// withinLimits returns commands without the messages that exceed the server's
// limits, and logs those.
func (l *Link) withinLimits(commands []byte) []byte {
	now := limits{payload: int(l.maxPayload.Load()), control: int(l.maxReply.Load()) + ControlLineMargin}
	kept, dropped := now.filter(commands)
	if dropped > 0 {
		l.log.Error("messages exceed the limits of the NATS server, and were not sent",
			"link", l.opts.Name, "messages", dropped, "max_payload", now.payload, "max_control_line", now.control)
	}
	return kept
}

// filter returns commands without the messages that are too large, and the
// number of those. It is the last line of defense: code that creates messages
// of unbounded size checks them itself, and replies with a reason.
func (m limits) filter(commands []byte) (kept []byte, dropped int) {
	if m.control <= ControlLineMargin { // not known yet
		return commands, 0
	}
	if len(commands) <= m.control && (m.payload == 0 || len(commands) <= m.payload) {
		return commands, 0
	}
	start := 0 // of the commands to keep that are not in kept yet
	for at := 0; at < len(commands); {
		end := at + bytes.IndexByte(commands[at:], '\n') + 1
		if end == at {
			break // the command is incomplete
		}
		line := bytes.TrimRight(commands[at:end], "\r\n")
		next, size := end, 0
		if bytes.HasPrefix(line, []byte("PUB ")) || bytes.HasPrefix(line, []byte("HPUB ")) {
			size, _ = parseSize(line[bytes.LastIndexByte(line, ' ')+1:])
			next = end + size + len("\r\n")
		}
		if len(line) > m.control || m.payload > 0 && size > m.payload {
			kept = append(kept, commands[start:at]...)
			start = next
			dropped++
		}
		at = next
	}
	if dropped == 0 {
		return commands, 0
	}
	return append(kept, commands[min(start, len(commands)):]...), dropped
}
