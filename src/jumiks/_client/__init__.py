# SPDX-License-Identifier: Apache-2.0
"""What a client does before and between its connections."""
