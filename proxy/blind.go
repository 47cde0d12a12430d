package proxy

import "pgfailproxy/pgwire"

// startBlind answers the start-up packets of a session that is not followed until
// a server has taken one: then it returns that server's link. TLS goes through end
// to end. A cancel request is dealt with here: then there is no link.
func (s *session) startBlind() (*link, error) {
	var spare *link // a server that refused TLS and waits for a start-up packet
	defer func() {
		if spare != nil {
			spare.conn.Close()
		}
	}()
	var askedGSS, askedSSL bool
	for {
		packet, err := s.readPacket()
		if err != nil {
			return nil, s.badStart(err)
		}
		switch packet.Kind {
		case pgwire.KindCancel:
			s.cancelRequest(packet.Raw)
			return nil, nil
		case pgwire.KindGSS:
			if askedGSS || s.in.Buffered() > 0 {
				return nil, s.badStart(errUnencrypted)
			}
			askedGSS = true
			// Never passed on: the server may say yes, and TLS is what is kept.
			if _, err := s.client.Write([]byte{'N'}); err != nil {
				return nil, err
			}
			continue
		case pgwire.KindSSL:
			if askedSSL || s.in.Buffered() > 0 {
				return nil, s.badStart(errUnencrypted)
			}
			askedSSL = true
		}
		s.identify(packet)
		l, err := s.reach(packet, spare)
		spare = nil
		if err != nil {
			return nil, s.unreached(packet, err)
		}
		if packet.Kind != pgwire.KindSSL {
			return l, nil
		}
		if s.in.Buffered() > 0 { // came while it waited
			l.conn.Close()
			return nil, s.badStart(errUnencrypted)
		}
		if l.answer[0] != 'N' {
			return l, nil
		}
		spare = l
		if _, err := s.client.Write(l.answer); err != nil {
			return nil, err
		}
	}
}
