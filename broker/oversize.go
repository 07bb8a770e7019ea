package broker

import "bytes"

// wireLimits are what the NATS server takes from a connection: it closes one that
// sends anything larger, and with it everything that the connection serves.
type wireLimits struct {
	payload int // bytes of a message, headers included; 0 if it is not known yet
	control int // bytes of a command's first line
}

// acceptable returns commands without what the server does not take.
func (l *link) acceptable(commands []byte) []byte {
	limits := wireLimits{payload: int(l.maxPayload.Load()), control: int(l.maxReply.Load()) + controlLineMargin}
	kept, dropped := limits.keep(commands)
	if dropped > 0 {
		l.log.Error("messages are larger than the NATS server takes, and were not sent",
			"link", l.name, "messages", dropped, "max_payload", limits.payload, "max_control_line", limits.control)
	}
	return kept
}

// keep returns commands without the messages that are too large, and how many those
// are. It is the last line of defense: whoever makes messages that can become too
// large refuses in time, with a reason.
func (m wireLimits) keep(commands []byte) (kept []byte, dropped int) {
	if m.control <= controlLineMargin { // not known yet
		return commands, 0
	}
	if len(commands) <= m.control && (m.payload == 0 || len(commands) <= m.payload) {
		return commands, 0
	}
	start := 0 // of what is to be kept, and not yet in kept
	for at := 0; at < len(commands); {
		end := at + bytes.IndexByte(commands[at:], '\n') + 1
		if end == at {
			break // not a whole command
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
